"""DINOv2 in the layouts of its own repository (PyTorch hub) and of transformers (Dinov2Model)."""

import re
from collections.abc import Mapping

import numpy as np

from models.dinov2 import DINOv2Config, make_dinov2
from models.functional import Params
from models.pretrained.convert import Names, fill, stack_layers

_NAMES: Names = {
    "": "embeddings",
    "patches": "patch_embed.proj",
    "positions": "positions",
    "norm": "norm",
    "blocks/norm1": "stacked.norm1",
    "blocks/attention/qkv": "stacked.attn.qkv",
    "blocks/attention/projection": "stacked.attn.proj",
    "blocks/scale1": "stacked.ls1",
    "blocks/norm2": "stacked.norm2",
    "blocks/mlp1": "stacked.mlp.fc1",
    "blocks/mlp2": "stacked.mlp.fc2",
    "blocks/scale2": "stacked.ls2",
}
# Patterns of transformers' names, and what they are in the repository.
_TRANSFORMERS = (
    (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.", "blocks."),
    # Newer versions call them q_proj and so on.
    (r"\.attention\.(attention\.query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(attention\.key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(attention\.value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)


def dinov2_from_torch(tensors: Mapping[str, np.ndarray], config: DINOv2Config) -> Params:
    """Parameters of `DINOv2(config)` from a state dict of either layout.

    Positions of another number of patches are interpolated to the config's, as the repository's
    code does in each call: the published ones are of 37 x 37 patches, and 224 pixels have 16 x 16.

    Raises:
        ValueError: names of all tensors that lack, are too many or have another shape.
    """
    given = {_renamed(name): tensor for name, tensor in tensors.items()}
    given.pop("mask_token", None)  # of training only
    for name in [name for name in given if ".attn.q." in name]:
        parts = [name.replace(".attn.q.", f".attn.{letter}.") for letter in "qkv"]
        if all(part in given for part in parts):
            whole = np.concatenate([given.pop(part) for part in parts])
            given[name.replace(".attn.q.", ".attn.qkv.")] = whole
    given = {name.replace(".gamma", ".weight"): tensor for name, tensor in given.items()}
    if "cls_token" in given:
        given["embeddings.class_embedding"] = given.pop("cls_token").reshape(-1)
    if "pos_embed" in given:
        table = given.pop("pos_embed")
        given["positions.weight"] = _resized(table.reshape(-1, table.shape[-1]), config.side)
    if "patch_embed.proj.weight" in given:
        # (out, channel, row, column) of a convolution to a dense layer over (row, column, channel).
        kernel = np.moveaxis(given["patch_embed.proj.weight"], 1, -1)
        given["patch_embed.proj.weight"] = kernel.reshape(len(kernel), -1)
    given = stack_layers(given, "blocks.", "stacked.", config.depth)
    return fill(make_dinov2(config), given, _NAMES)


def _renamed(name: str) -> str:
    for pattern, new in _TRANSFORMERS:
        name = re.sub(pattern, new, name)
    return name


def _resized(table: np.ndarray, side: int) -> np.ndarray:
    """Embeddings at another number of patches; that of the class token stays."""
    first, patches = table[:1], table[1:]
    before = round(len(patches) ** 0.5)
    if before == side or before**2 != len(patches):
        return table
    matrix = _bicubic(before, side)
    square = patches.reshape(before, before, -1).astype(np.float64)
    square = np.einsum("ia,jb,abc->ijc", matrix, matrix, square, optimize=True)
    return np.concatenate([first, square.reshape(side**2, -1).astype(table.dtype)])


def _bicubic(before: int, after: int) -> np.ndarray:
    """PyTorch's bicubic interpolation without antialiasing (Keys' filter with a = -3/4).

    The factor is not quite after / before: DINOv2's code adds 0.1 to `after`, its features are of
    positions that are off by this, and so must these be.
    """
    at = (np.arange(after) + 0.5) * before / (after + 0.1) - 0.5
    matrix = np.zeros((after, before))
    for offset in range(-1, 3):
        pixel = np.floor(at) + offset
        x = np.abs(at - pixel)
        inner = (1.25 * x - 2.25) * x**2 + 1
        outer = ((-0.75 * x + 3.75) * x - 6) * x + 3
        # Beyond the border its last pixel stands.
        column = np.clip(pixel, 0, before - 1).astype(int)
        np.add.at(matrix, (np.arange(after), column), np.where(x < 1, inner, outer))
    return matrix
