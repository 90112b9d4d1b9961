"""U-Nets in diffusers' layout; the fields of UNet2DModel, such as google/ddpm-cifar10-32.

Those of UNet2DConditionModel, which is the same but for its attention, are read by
diffusers_conditional.py.
"""

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
    "context": ("add_k_proj", "add_v_proj"),
    "projection": "to_out.0",
}
_TRANSFORMER = {"norm": "norm", "projection_in": "proj_in", "projection_out": "proj_out"}
_TRANSFORMER_BLOCK = {
    "norm1": "norm1",
    "attention1/q": "attn1.to_q",
    "attention1/kv": ("attn1.to_k", "attn1.to_v"),
    "attention1/projection": "attn1.to_out.0",
    "norm2": "norm2",
    "attention2/q": "attn2.to_q",
    "attention2/kv": ("attn2.to_k", "attn2.to_v"),
    "attention2/projection": "attn2.to_out.0",
    "norm3": "norm3",
    "feed_forward/linear1": "ff.net.0.proj",
    "feed_forward/linear2": "ff.net.2",
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
    require(config, _ONLY)
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
        time_embedding=time_embedding(config),
        norm_groups=config.get("norm_num_groups", 32),
        norm_eps=config.get("norm_eps", 1e-5),
        init="torch",
        num_classes=config.get("num_class_embeds") or 0,
    )


def require(config: Mapping[str, Any], only: Mapping[str, tuple]) -> None:
    """ValueError if a field has none of its values in `only`; where it is left out, the first."""
    for name, allowed in only.items():
        value = config.get(name, allowed[0])
        if value not in allowed:
            raise ValueError(f"{name}={value!r}: can read {allowed} only")


def time_embedding(config: Mapping[str, Any]) -> str:
    """`UNetConfig.time_embedding` of a config.json."""
    order = (config.get("flip_sin_to_cos", True), config.get("freq_shift", 0))
    orders = {(False, 1): "ddpm", (True, 0): "adm"}
    if order not in orders:
        raise ValueError(f"(flip_sin_to_cos, freq_shift)={order}: can read {list(orders)} only")
    return orders[order]


def unet_from_diffusers(tensors: Mapping[str, np.ndarray], config: UNetConfig) -> Params:
    """Parameters of `UNet(config)` from the tensors of a UNet2D(Condition)Model of that config."""
    old = re.compile(r"(?<=\.)(query|key|value|proj_attn)(?=\.(weight|bias)$)")
    tensors = {old.sub(lambda m: _RENAMED[m[0]], key): value for key, value in tensors.items()}
    width = 4 * config.channels
    if config.embedding_dim == width and "class_embedding.weight" not in tensors:
        # class_embed_type 'identity': the vector is added as it is.
        tensors["class_embedding.weight"] = np.eye(width, dtype=np.float32)
        tensors["class_embedding.bias"] = np.zeros(width, np.float32)
    return fill(make_unet(config), tensors, _names(config))


def _names(config: UNetConfig) -> Names:
    names = {
        "time1": "time_embedding.linear_1",
        "time2": "time_embedding.linear_2",
        "label": "class_embedding",
        "embedding": "class_embedding",
        "conv_in": "conv_in",
        "norm_out": "conv_norm_out",
        "conv_out": "conv_out",
    }

    def add(ours: str, theirs: str, parts: Mapping[str, str | tuple[str, ...]]):
        for name, there in parts.items():
            there = (there,) if isinstance(there, str) else there
            names[f"{ours}/{name}"] = tuple(f"{theirs}.{part}" for part in there)

    def attention(ours: str, theirs: str, depth: int):
        if config.context != "cross":
            return add(ours, theirs, _ATTENTION)
        add(ours, theirs, _TRANSFORMER)
        for i in range(depth):
            add(f"{ours}/blocks/{i}", f"{theirs}.transformer_blocks.{i}", _TRANSFORMER_BLOCK)

    def level(ours: str, theirs: str, blocks: int, depth: int, resampler: str):
        for block in range(blocks):
            add(f"{ours}/blocks/{block}/residual", f"{theirs}.resnets.{block}", _RESIDUAL)
            attention(f"{ours}/blocks/{block}/attention", f"{theirs}.attentions.{block}", depth)
        parts = _RESIDUAL if config.resample == "resblock" else {"conv": "conv"}
        add(f"{ours}/resample", f"{theirs}.{resampler}.0", parts)

    count, depths = config.num_res_blocks, config.depths
    for i, depth in enumerate(depths):
        level(f"encoder/{i}", f"down_blocks.{i}", count, depth, "downsamplers")
    for i, depth in enumerate(reversed(depths)):
        level(f"decoder/{i}", f"up_blocks.{i}", count + 1, depth, "upsamplers")
    add("middle/0/residual", "mid_block.resnets.0", _RESIDUAL)
    attention("middle/0/attention", "mid_block.attentions.0", depths[-1])
    add("middle/1/residual", "mid_block.resnets.1", _RESIDUAL)
    return names
