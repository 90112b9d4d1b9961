"""U-Nets in the layout of OpenAI's improved-diffusion and guided-diffusion (ADM)."""

from collections.abc import Mapping

import numpy as np

from models.functional import Params
from models.pretrained.convert import Names, fill
from models.unet import UNetConfig, make_unet

_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "condition": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "shortcut": "skip_connection",
}
_ATTENTION = {"norm": "norm", "qkv": "qkv", "projection": "proj_out"}


def unet_from_openai(
    tensors: Mapping[str, np.ndarray], config: UNetConfig, *, new_attention_order: bool
) -> Params:
    """Parameters of `UNet(config)` from a state dict of `UNetModel`.

    The file does not say what the network is: `config` must repeat the flags it was trained with
    (attention resolutions in pixels, `norm_eps` 1e-5, `time_embedding` 'adm', and `resample`
    'resblock' with --resblock_updown, else 'conv_symmetric').
    new_attention_order: the flag --use_new_attention_order; False for all of improved-diffusion.
    """
    if not new_attention_order:
        tensors = {
            key: _heads_inside(tensor, config) if ".qkv." in key else tensor
            for key, tensor in tensors.items()
        }
    return fill(make_unet(config), tensors, _names(config))


def _heads_inside(tensor: np.ndarray, config: UNetConfig) -> np.ndarray:
    """Output axis (head, q | k | v, channel) to ours, (q | k | v, head, channel)."""
    width = tensor.shape[0] // 3
    heads = config.heads(width)
    split = tensor.reshape(heads, 3, width // heads, *tensor.shape[1:])
    return split.swapaxes(0, 1).reshape(tensor.shape)


def _names(config: UNetConfig) -> Names:
    names = {
        "time1": "time_embed.0",
        "time2": "time_embed.2",
        "label": "label_emb",
        "conv_in": "input_blocks.0.0",
        "norm_out": "out.0",
        "conv_out": "out.2",
    }

    def add(ours: str, theirs: str, parts: Mapping[str, str]):
        names.update({f"{ours}/{a}": f"{theirs}.{b}" for a, b in parts.items()})

    def resample(ours: str, theirs: str, convolution: str):
        add(ours, theirs, _RESIDUAL if config.resample == "resblock" else {"conv": convolution})

    # Both lists are flat; a level with its resampling takes num_res_blocks + 1 entries of each.
    # On the way down resampling is an entry of its own, on the way up the last part of an entry.
    stride = config.num_res_blocks + 1
    levels = len(config.channel_mult)
    for level in range(levels):
        first = 1 + level * stride
        for block in range(config.num_res_blocks):
            ours, theirs = f"encoder/{level}/blocks/{block}", f"input_blocks.{first + block}"
            add(f"{ours}/residual", f"{theirs}.0", _RESIDUAL)
            add(f"{ours}/attention", f"{theirs}.1", _ATTENTION)
        resample(f"encoder/{level}/resample", f"input_blocks.{first + stride - 1}.0", "op")

        attention = config.resolutions[levels - 1 - level] in config.attention_resolutions
        for block in range(stride):
            ours, theirs = (
                f"decoder/{level}/blocks/{block}",
                f"output_blocks.{level * stride + block}",
            )
            add(f"{ours}/residual", f"{theirs}.0", _RESIDUAL)
            add(f"{ours}/attention", f"{theirs}.1", _ATTENTION)
        resample(f"decoder/{level}/resample", f"{theirs}.{2 if attention else 1}", "conv")
    add("middle/0/residual", "middle_block.0", _RESIDUAL)
    add("middle/0/attention", "middle_block.1", _ATTENTION)
    add("middle/1/residual", "middle_block.2", _RESIDUAL)
    return names
