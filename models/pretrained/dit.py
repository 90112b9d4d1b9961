"""Transformers in the layout of facebookresearch/DiT."""

from collections.abc import Mapping

import numpy as np

from models.dit import DiTConfig, make_dit
from models.functional import Params
from models.pretrained.convert import fill

_NAMES = {
    "patches": "x_embedder.proj",
    "time1": "t_embedder.mlp.0",
    "time2": "t_embedder.mlp.2",
    "label": "y_embedder.embedding_table",
    "modulation_out": "final_layer.adaLN_modulation.1",
    "linear_out": "final_layer.linear",
}
_BLOCK = {
    "modulation": "adaLN_modulation.1",
    "attention/qkv": "attn.qkv",
    "attention/projection": "attn.proj",
    "mlp1": "mlp.fc1",
    "mlp2": "mlp.fc2",
}


def dit_from_facebook(tensors: Mapping[str, np.ndarray], config: DiTConfig) -> Params:
    """Parameters of `DiT(config)` from a state dict of `DiT`.

    The table of positions is computed here; the file's is left.
    """
    tensors = {key: tensor for key, tensor in tensors.items() if key != "pos_embed"}
    patches = "x_embedder.proj.weight"
    if patches in tensors:
        # (out, channel, row, column) of a convolution to a dense layer over (row, column, channel).
        kernel = np.moveaxis(tensors[patches], 1, -1)
        tensors[patches] = kernel.reshape(len(kernel), -1)
    for name in _BLOCK.values():
        # The axis of depth goes where the window of a convolution would stand, so that it comes
        # first in our layout.
        for kind, axis in (("weight", -1), ("bias", 0)):
            keys = [f"blocks.{index}.{name}.{kind}" for index in range(config.depth)]
            if all(key in tensors for key in keys):
                tensors[f"blocks.{name}.{kind}"] = np.stack([tensors.pop(k) for k in keys], axis)
    names = _NAMES | {f"blocks/{ours}": f"blocks.{theirs}" for ours, theirs in _BLOCK.items()}
    return fill(make_dit(config), tensors, names)
