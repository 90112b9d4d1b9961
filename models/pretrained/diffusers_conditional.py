"""The fields of diffusers' UNet2DConditionModel: Stable Diffusion, and the decoder of unCLIP."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from models.pretrained.diffusers import require, time_embedding
from models.unet import UNetConfig


class _Kind(NamedTuple):
    """What goes with a type of the middle block; {} stands for Down or Up."""

    context: str
    resample: str
    attended: str
    plain: str


_KINDS = {
    "UNetMidBlock2DCrossAttn": _Kind("cross", "conv", "CrossAttn{}Block2D", "{}Block2D"),
    "UNetMidBlock2DSimpleCrossAttn": _Kind(
        "kv", "resblock", "SimpleCrossAttn{}Block2D", "Resnet{}sampleBlock2D"
    ),
}
# What UNet2DConditionModel can be and ours cannot, as in diffusers.py. `use_linear_projection` and
# `upcast_attention` are free: a 1x1 convolution is a linear layer, our softmax is always float32.
_ONLY = {
    "mid_block_type": tuple(_KINDS),
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "only_cross_attention": (False,),
    "mid_block_only_cross_attention": (None, False),
    "dual_cross_attention": (False,),
    "cross_attention_norm": (None,),
    "attention_type": ("default",),
    "num_attention_heads": (None,),
    "reverse_transformer_layers_per_block": (None,),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (1, 0),
    "act_fn": ("silu",),
    "class_embed_type": (None, "identity", "simple_projection"),
    "class_embeddings_concat": (False,),
    "addition_embed_type": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1.0,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
}


def conditional_unet_config(config: Mapping[str, Any]) -> UNetConfig:
    """The U-Net that a config.json of UNet2DConditionModel describes; ValueError if ours cannot.

    The parameters are read by `diffusers.unet_from_diffusers`. What the file calls class_labels is
    the condition 'embedding' where it has a class_embed_type.
    """
    require(config, _ONLY)
    kind = _KINDS[config.get("mid_block_type", "UNetMidBlock2DCrossAttn")]
    widths, size = config["block_out_channels"], config["sample_size"]
    attended = _attended(config, kind)
    if kind.context == "kv":
        # Its attention has this eps whatever the rest has.
        require(config, {"norm_eps": (1e-5,)})
    resample = kind.resample
    if resample == "conv" and config.get("downsample_padding", 1):
        resample = "conv_symmetric"
    depths = _each(config, "transformer_layers_per_block", 1)
    embed = config.get("class_embed_type")
    embedding_dim = {
        None: 0,
        "identity": 4 * widths[0],
        "simple_projection": config.get("projection_class_embeddings_input_dim"),
    }[embed]
    scale_shift = config.get("resnet_time_scale_shift") == "scale_shift"
    return UNetConfig(
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        image_size=size,
        channels=widths[0],
        channel_mult=tuple(width / widths[0] for width in widths),
        num_res_blocks=_one(config, "layers_per_block", 2),
        attention_resolutions=tuple(size >> level for level, a in enumerate(attended) if a),
        dropout=float(config.get("dropout", 0)),
        conditioning="scale_shift" if scale_shift else "add",
        resample=resample,
        time_embedding=time_embedding(config),
        norm_groups=config.get("norm_num_groups", 32),
        norm_eps=config.get("norm_eps", 1e-5),
        init="torch",
        num_classes=0 if embed else config.get("num_class_embeds") or 0,
        context=kind.context,
        context_dim=_one(config, "cross_attention_dim", 1280),
        transformer_depth=tuple(depths) if len(set(depths)) > 1 else (depths[0],),
        embedding_dim=embedding_dim,
        **_heads(config, kind),
    )


def _attended(config: Mapping[str, Any], kind: _Kind) -> list[bool]:
    """Which levels have attention, finest first."""
    down, up = list(config["down_block_types"]), list(config["up_block_types"])
    attended = [name == kind.attended.format("Down") for name in down]

    def names(where, levels):
        return [(kind.attended if a else kind.plain).format(where) for a in levels]

    if (down, up) != (names("Down", attended), names("Up", reversed(attended))):
        raise ValueError(
            f"down_block_types={down}, up_block_types={up}: can read {kind.attended} and "
            f"{kind.plain} only, with attention at the same levels both ways"
        )
    return attended


def _heads(config: Mapping[str, Any], kind: _Kind) -> dict[str, int]:
    """attention_head_dim is the width of a head in unCLIP, but their number in the others."""
    if kind.context == "kv":
        return {"head_channels": _one(config, "attention_head_dim", 8)}
    numbers = _each(config, "attention_head_dim", 8)
    if len(set(numbers)) == 1:
        return {"num_heads": numbers[0]}
    sizes = {w / n for w, n in zip(config["block_out_channels"], numbers, strict=True)}
    if len(sizes) > 1:
        raise ValueError(
            f"attention_head_dim={numbers}: can read one number of heads, or one width of them, "
            f"but block_out_channels={config['block_out_channels']}"
        )
    return {"head_channels": int(sizes.pop())}


def _each(config: Mapping[str, Any], name: str, default: int) -> list[int]:
    """A field that is a number for all levels or one for each."""
    value = config.get(name, default)
    levels = len(config["block_out_channels"])
    return list(value) if isinstance(value, list | tuple) else [value] * levels


def _one(config: Mapping[str, Any], name: str, default: int) -> int:
    values = _each(config, name, default)
    if len(set(values)) > 1:
        raise ValueError(f"{name}={values}: can read one for all levels only")
    return values[0]
