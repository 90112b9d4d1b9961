"""Outputs of EDM's and score_sde's U-Nets, for tests/models/test_edm_goldens.py. Needs torch.

    PYTHONPATH=. python tests/golden/models/make_edm.py EDM SCORE_SDE

The arguments are checkouts of github.com/NVlabs/edm and github.com/yang-song/score_sde_pytorch.
Writes <case>.json (names and shapes of the weights) and <case>.npz (the output [batch, channels,
height, width] for the inputs of edm_inputs.py).
"""

import json
import pathlib
import sys
import types

import numpy as np
import torch

from tests.golden.models import edm_inputs as given
from tests.golden.models import generated

HERE = pathlib.Path(__file__).parent


def save(case: str, model: torch.nn.Module, *inputs) -> None:
    """Fills `model` with generated weights, runs it and writes the two files of `case`."""
    state = model.state_dict()
    # Fixed filters and tables are the model's own.
    fixed = ("resample_filter", "sigmas")
    shapes = {k: list(v.shape) for k, v in state.items() if not k.endswith(fixed)}
    state |= {k: torch.tensor(given.tensor(k, shape)) for k, shape in shapes.items()}
    model.load_state_dict(state)
    x = torch.tensor(generated.images(len(given.SIGMAS), 3, given.SIZE))
    with torch.no_grad():
        output = model.eval()(x, *inputs).numpy()
    print(f"{case}: {len(shapes)} tensors, output {output.shape} of std {output.std():.3f}")
    (HERE / f"{case}.json").write_text(json.dumps(shapes))
    np.savez_compressed(HERE / f"{case}.npz", output=output)


def edm() -> None:
    """DDPM++, NCSN++ and ADM with labels and augmentation labels."""
    from training.networks import DhariwalUNet, SongUNet

    labels = torch.eye(given.CLASSES + 1)[given.LABELS, : given.CLASSES]
    inputs = (torch.log(torch.tensor(given.SIGMAS)), labels, torch.tensor(given.AUGMENT).float())

    def settings(ours):
        names = {
            "channels": "model_channels",
            "channel_mult": "channel_mult",
            "num_res_blocks": "num_blocks",
            "attention_resolutions": "attn_resolutions",
        }
        sizes = {"img_resolution": given.SIZE, "in_channels": 3, "out_channels": 3}
        return {names[k]: v for k, v in ours.items()} | sizes | {"label_dim": 10, "augment_dim": 9}

    save("edm_ddpmpp", SongUNet(**settings(given.SONG)), *inputs)
    ncsnpp = {
        "embedding_type": "fourier",
        "channel_mult_noise": 2,
        "encoder_type": "residual",
        "resample_filter": [1, 3, 3, 1],
    }
    save("edm_ncsnpp", SongUNet(**settings(given.SONG), **ncsnpp), *inputs)
    save("edm_adm", DhariwalUNet(**settings(given.ADM)), *inputs)


def score_sde() -> None:
    """NCSN++ of configs/ve/cifar10_ncsnpp_continuous.py, smaller; its output is times sigma."""
    # Its CUDA operators are compiled when imported; on a CPU it runs its own Python instead.
    import torch.utils.cpp_extension
    from dnnlib import EasyDict

    torch.utils.cpp_extension.load = lambda *args, **kwargs: types.SimpleNamespace()
    # Its configs need no more of ml_collections than attributes.
    sys.modules["ml_collections"] = types.SimpleNamespace(ConfigDict=EasyDict)
    from configs.ve.cifar10_ncsnpp_continuous import get_config
    from models.ncsnpp import NCSNpp

    config = get_config()
    config.data.update(image_size=given.SIZE, centered=True)
    config.model.update(
        nf=given.SONG["channels"],
        ch_mult=given.SONG["channel_mult"],
        num_res_blocks=given.SONG["num_res_blocks"],
        attn_resolutions=given.SONG["attention_resolutions"],
        scale_by_sigma=False,
    )
    save("score_sde_ncsnpp", NCSNpp(config), torch.tensor(given.SIGMAS))


if __name__ == "__main__":
    # The checkouts have packages of the same names as this project's.
    sys.path[:] = [p for p in sys.path if pathlib.Path(p).resolve() != HERE.parents[2]]
    sys.path[:0] = sys.argv[1:3]
    edm()
    score_sde()
