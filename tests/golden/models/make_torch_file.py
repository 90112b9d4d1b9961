"""State dicts as PyTorch writes them, for tests/models/pretrained/test_torch_file.py.

    python tests/golden/models/make_torch_file.py

Needs torch. Writes torch_file_zip.pth and torch_file_old.pth, of equal content, and
torch_file.npz, what that is.
"""

import collections
import pathlib

import numpy as np
import torch

HERE = pathlib.Path(__file__).parent


def state() -> collections.OrderedDict:
    """Of several types; two tensors are of one storage, and one is a transposed view."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(5, 4, generator=generator)
    return collections.OrderedDict(
        {
            "rows": shared[1:3],
            "transposed": shared.T,
            "half": torch.randn(3, generator=generator).half(),
            "bfloat16": torch.randn(2, 2, generator=generator).bfloat16(),
            "double": torch.randn(2, generator=generator).double(),
            "steps": torch.tensor(7),
            "empty": torch.zeros(0, 3),
        }
    )


if __name__ == "__main__":
    tensors = state()
    # As state_dict() leaves it there.
    tensors._metadata = collections.OrderedDict({"": {"version": 1}})
    torch.save(tensors, HERE / "torch_file_zip.pth")
    torch.save(tensors, HERE / "torch_file_old.pth", _use_new_zipfile_serialization=False)
    arrays = {k: (v.float() if v.is_floating_point() else v).numpy() for k, v in tensors.items()}
    np.savez(HERE / "torch_file.npz", **arrays)
