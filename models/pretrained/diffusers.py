"""U-Nets in the layout of diffusers' UNet2DModel, such as google/ddpm-cifar10-32."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from models.functional import Params
from models.pretrained.convert import Names, fill
from models.unet import UNetConfig, make_unet

_RESIDUAL = {
    "norm1": "norm1",
    "conv1": "conv1",
    "condition": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "shortcut": "conv_shortcut",
}
_ATTENTION = {
    "norm": "group_norm",
    "qkv": ("to_q", "to_k", "to_v"),
    "projection": "to_out.0",
}
# Names of the attention layers in files of the first versions of diffusers.
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

# What UNet2DModel can be and ours cannot: field ► values that we have. A file may leave a field
# out; then it has the default of UNet2DModel, the first here.
_ONLY = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": ("silu",),
    "attn_norm_num_groups": (None,),
    "add_attention": (True,),
    "class_embed_type": (None,),
    "downsample_padding": (1, 0),
    "resnet_time_scale_shift": ("default", "scale_shift"),
}


def unet_config(config: Mapping[str, Any]) -> UNetConfig:
    """The U-Net that a config.json of UNet2DModel describes; ValueError if ours cannot be it."""
    for name, allowed in _ONLY.items():
        value = config.get(name, allowed[0])
        if value not in allowed:
            raise ValueError(f"{name}={value!r}: can read {allowed} only")
    order = (config.get("flip_sin_to_cos", True), config.get("freq_shift", 0))
    orders = {(False, 1): "ddpm", (True, 0): "adm"}
    if order not in orders:
        raise ValueError(f"(flip_sin_to_cos, freq_shift)={order}: can read {list(orders)} only")
    down, up = config["down_block_types"], config["up_block_types"]
    attended = [name == "AttnDownBlock2D" for name in down]
    want_down = ["AttnDownBlock2D" if a else "DownBlock2D" for a in attended]
    want_up = ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)]
    if (list(down), list(up)) != (want_down, want_up):
        raise ValueError(
            f"down_block_types={down}, up_block_types={up}: can read (Attn)DownBlock2D and "
            "(Attn)UpBlock2D only, with attention at the same levels both ways"
        )
    scale_shift = config.get("resnet_time_scale_shift") == "scale_shift"
    widths = config["block_out_channels"]
    head_channels = config.get("attention_head_dim", 8)
    return UNetConfig(
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        image_size=config["sample_size"],
        channels=widths[0],
        channel_mult=tuple(width / widths[0] for width in widths),
        num_res_blocks=config.get("layers_per_block", 2),
        attention_resolutions=tuple(
            config["sample_size"] >> level for level, a in enumerate(attended) if a
        ),
        head_channels=head_channels or 0,
        dropout=float(config.get("dropout", 0)),
        conditioning="scale_shift" if scale_shift else "add",
        resample="conv_symmetric" if config.get("downsample_padding", 1) else "conv",
        time_embedding=orders[order],
        norm_groups=config.get("norm_num_groups", 32),
        norm_eps=config.get("norm_eps", 1e-5),
        init="torch",
        num_classes=config.get("num_class_embeds") or 0,
    )


def unet_from_diffusers(tensors: Mapping[str, np.ndarray], config: UNetConfig) -> Params:
    """Parameters of `UNet(config)` from the tensors of a UNet2DModel of that config."""
    old = re.compile(r"(?<=\.)(query|key|value|proj_attn)(?=\.(weight|bias)$)")
    tensors = {old.sub(lambda m: _RENAMED[m[0]], key): value for key, value in tensors.items()}
    return fill(make_unet(config), tensors, _names(config))


def _names(config: UNetConfig) -> Names:
    names = {
        "time1": "time_embedding.linear_1",
        "time2": "time_embedding.linear_2",
        "label": "class_embedding",
        "conv_in": "conv_in",
        "norm_out": "conv_norm_out",
        "conv_out": "conv_out",
    }

    def add(ours: str, theirs: str, parts: Mapping[str, str | tuple[str, ...]]):
        for name, there in parts.items():
            there = (there,) if isinstance(there, str) else there
            names[f"{ours}/{name}"] = tuple(f"{theirs}.{part}" for part in there)

    def level(ours: str, theirs: str, blocks: int, resampler: str):
        for block in range(blocks):
            add(f"{ours}/blocks/{block}/residual", f"{theirs}.resnets.{block}", _RESIDUAL)
            add(f"{ours}/blocks/{block}/attention", f"{theirs}.attentions.{block}", _ATTENTION)
        add(f"{ours}/resample", f"{theirs}.{resampler}.0", {"conv": "conv"})

    for i in range(len(config.channel_mult)):
        level(f"encoder/{i}", f"down_blocks.{i}", config.num_res_blocks, "downsamplers")
        level(f"decoder/{i}", f"up_blocks.{i}", config.num_res_blocks + 1, "upsamplers")
    add("middle/0/residual", "mid_block.resnets.0", _RESIDUAL)
    add("middle/0/attention", "mid_block.attentions.0", _ATTENTION)
    add("middle/1/residual", "mid_block.resnets.1", _RESIDUAL)
    return names
