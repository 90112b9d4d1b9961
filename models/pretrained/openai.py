"""U-Nets in the layout of OpenAI's improved-diffusion and guided-diffusion (ADM)."""

from collections.abc import Mapping

import numpy as np

from models.functional import Params
from models.pretrained.convert import Names, fill
from models.unet import UNetConfig, make_unet
from models.unet_encoder import UNetEncoderConfig, make_unet_encoder

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
    tensors = _ordered(tensors, config, new_attention_order)
    return fill(make_unet(config), tensors, _names(config) | _decoder(config))


def unet_encoder_from_openai(
    tensors: Mapping[str, np.ndarray], config: UNetEncoderConfig, *, new_attention_order: bool
) -> Params:
    """Parameters of `UNetEncoder(config)` from a state dict of guided-diffusion's classifier.

    `config` and new_attention_order as of `unet_from_openai`; pool 'attention' is theirs.
    """
    tensors = _ordered(tensors, config, new_attention_order)
    pool = {"pool": "out.2", "pool/qkv": "out.2.qkv_proj", "pool/projection": "out.2.c_proj"}
    tensors = {
        key: tensor.T if key.endswith("positional_embedding") else tensor
        for key, tensor in tensors.items()
    }
    return fill(make_unet_encoder(config), tensors, _names(config) | pool)


def _ordered(tensors, config: UNetConfig, new_attention_order: bool) -> Mapping[str, np.ndarray]:
    if new_attention_order:
        return tensors
    return {
        key: _heads_inside(tensor, config) if ".qkv." in key else tensor
        for key, tensor in tensors.items()
    }


def _heads_inside(tensor: np.ndarray, config: UNetConfig) -> np.ndarray:
    """Output axis (head, q | k | v, channel) to ours, (q | k | v, head, channel)."""
    width = tensor.shape[0] // 3
    heads = config.heads(width)
    split = tensor.reshape(heads, 3, width // heads, *tensor.shape[1:])
    return split.swapaxes(0, 1).reshape(tensor.shape)


def _names(config: UNetConfig) -> Names:
    """Of all but the decoder."""
    names = {
        "time1": "time_embed.0",
        "time2": "time_embed.2",
        "label": "label_emb",
        "conv_in": "input_blocks.0.0",
        "norm_out": "out.0",
    }
    # Both lists are flat; a level with its resampling takes num_res_blocks + 1 entries of each.
    # On the way down resampling is an entry of its own, on the way up the last part of an entry.
    stride = config.num_res_blocks + 1
    for level in range(len(config.channel_mult)):
        first = 1 + level * stride
        for block in range(config.num_res_blocks):
            ours, theirs = f"encoder/{level}/blocks/{block}", f"input_blocks.{first + block}"
            names |= _inside(f"{ours}/residual", f"{theirs}.0", _RESIDUAL)
            names |= _inside(f"{ours}/attention", f"{theirs}.1", _ATTENTION)
        theirs = f"input_blocks.{first + stride - 1}.0"
        names |= _resample(config, f"encoder/{level}/resample", theirs, "op")
    names |= _inside("middle/0/residual", "middle_block.0", _RESIDUAL)
    names |= _inside("middle/0/attention", "middle_block.1", _ATTENTION)
    return names | _inside("middle/1/residual", "middle_block.2", _RESIDUAL)


def _decoder(config: UNetConfig) -> Names:
    names = {"conv_out": "out.2"}
    stride, levels = config.num_res_blocks + 1, len(config.channel_mult)
    for level in range(levels):
        attention = config.resolutions[levels - 1 - level] in config.attention_resolutions
        for block in range(stride):
            ours, theirs = (
                f"decoder/{level}/blocks/{block}",
                f"output_blocks.{level * stride + block}",
            )
            names |= _inside(f"{ours}/residual", f"{theirs}.0", _RESIDUAL)
            names |= _inside(f"{ours}/attention", f"{theirs}.1", _ATTENTION)
        theirs = f"{theirs}.{2 if attention else 1}"
        names |= _resample(config, f"decoder/{level}/resample", theirs, "conv")
    return names


def _inside(ours: str, theirs: str, parts: Mapping[str, str]) -> Names:
    return {f"{ours}/{a}": f"{theirs}.{b}" for a, b in parts.items()}


def _resample(config: UNetConfig, ours: str, theirs: str, convolution: str) -> Names:
    parts = _RESIDUAL if config.resample == "resblock" else {"conv": convolution}
    return _inside(ours, theirs, parts)
