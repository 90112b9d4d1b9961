"""Resized images of other programs, for tests/evaluation/test_resize.py.

    python tests/golden/evaluation/make_resize.py

Needs torch, torchvision and torch-fidelity. Writes resize.npz.
"""

import pathlib
import sys

import numpy as np
import torch

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "models"))
# Without these declarations torchvision does not import beside a torch of another build.
library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import inception_weights as given  # noqa: E402
from torch.nn.functional import interpolate  # noqa: E402
from torch_fidelity import interpolate_compat_tensorflow  # noqa: E402

SIDE = 32
tensorflow1 = interpolate_compat_tensorflow.interpolate_bilinear_2d_like_tensorflow1x

if __name__ == "__main__":
    arrays = {}
    for side in (20, 45):
        images = torch.as_tensor(given.images(side)).permute(0, 3, 1, 2).float()
        resized = {
            "tf1": tensorflow1(images, (SIDE, SIDE), align_corners=False),
            "torch": interpolate(images, (SIDE, SIDE), mode="bilinear"),
            "antialiased": interpolate(images, (SIDE, SIDE), mode="bicubic", antialias=True),
        }
        for name, value in resized.items():
            arrays[f"{name}/{side}"] = value.permute(0, 2, 3, 1).numpy()
    np.savez_compressed(HERE / "resize.npz", **arrays)
