"""CLIP in the layouts of transformers (CLIPModel), OpenAI and OpenCLIP.

Every layout is first brought to the names of transformers. Their images are normalized by channel
means and deviations of their own, before they come here.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from models.clip import CLIPConfig, make_clip, make_text_tower
from models.functional import Params
from models.pretrained.convert import Names, fill, stack_layers
from models.pretrained.diffusers import require

_TEXT = {
    "tokens": "embeddings.token_embedding",
    "positions": "embeddings.position_embedding",
    "norm": "final_layer_norm",
}
_IMAGE = {
    "": "embeddings",
    "patches": "embeddings.patch_embedding",
    "positions": "embeddings.position_embedding",
    "norm_pre": "pre_layrnorm",
    "norm_post": "post_layernorm",
}
_BLOCK = {
    "norm1": "layer_norm1",
    "attention/qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention/projection": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp1": "mlp.fc1",
    "mlp2": "mlp.fc2",
}
# Patterns of OpenAI's names and what they are in transformers.
_OPENAI = (
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
# OpenAI's scripts keep these beside the weights.
_NUMBERS = ("input_resolution", "context_length", "vocab_size")


def clip_config(config: Mapping[str, Any]) -> CLIPConfig:
    """The CLIP that a config.json of CLIPModel describes; ValueError if ours cannot be it.

    What the file leaves out has the default of CLIPConfig of transformers.
    """
    text, vision = config.get("text_config") or {}, config.get("vision_config") or {}
    activation = text.get("hidden_act", "quick_gelu")
    for part in (text, vision):
        require(part, {"hidden_act": (activation,), "layer_norm_eps": (1e-5,)})
    width, image_width = text.get("hidden_size", 512), vision.get("hidden_size", 768)
    end = text.get("eos_token_id", 49407)
    dimension = config.get("projection_dim", 512)
    return CLIPConfig(
        in_channels=vision.get("num_channels", 3),
        out_channels=dimension,
        image_size=vision.get("image_size", 224),
        embedding_dim=dimension,
        patch_size=vision.get("patch_size", 32),
        image_width=image_width,
        image_depth=vision.get("num_hidden_layers", 12),
        image_heads=vision.get("num_attention_heads", 12),
        image_mlp_ratio=vision.get("intermediate_size", 3072) / image_width,
        vocab_size=text.get("vocab_size", 49408),
        context_length=text.get("max_position_embeddings", 77),
        text_width=width,
        text_depth=text.get("num_hidden_layers", 12),
        text_heads=text.get("num_attention_heads", 8),
        text_mlp_ratio=text.get("intermediate_size", 2048) / width,
        activation=activation,
        # Configs of before the field meant anything have 2, and the text is read at the largest id.
        end_token=-1 if end == 2 else end,
    )


def open_clip_config(config: Mapping[str, Any]) -> CLIPConfig:
    """The CLIP that an open_clip_config.json describes, `config` being its model_cfg."""
    text, vision = config["text_cfg"], config["vision_cfg"]
    for part, only in (
        (vision, {"pool_type": ("tok",), "no_ln_pre": (False,), "patch_dropout": (0, 0.0)}),
        (text, {"hf_model_name": (None,), "pool_type": ("argmax",), "proj_bias": (False,)}),
    ):
        require(part, only)
    return CLIPConfig(
        in_channels=3,
        out_channels=config["embed_dim"],
        image_size=vision.get("image_size", 224),
        embedding_dim=config["embed_dim"],
        patch_size=vision.get("patch_size", 16),
        image_width=vision.get("width", 768),
        image_depth=vision.get("layers", 12),
        image_heads=vision.get("width", 768) // vision.get("head_width", 64),
        image_mlp_ratio=vision.get("mlp_ratio", 4.0),
        vocab_size=text.get("vocab_size", 49408),
        context_length=text.get("context_length", 77),
        text_width=text.get("width", 512),
        text_depth=text.get("layers", 12),
        text_heads=text.get("heads", 8),
        text_mlp_ratio=text.get("mlp_ratio", 4.0),
        activation="quick_gelu" if config.get("quick_gelu") else "gelu",
        logit_bias="init_logit_bias" in config,
    )


def openai_config(tensors: Mapping[str, np.ndarray]) -> CLIPConfig:
    """The CLIP that OpenAI's state dict is of, as its shapes tell; ValueError for a ResNet."""
    if "visual.proj" not in tensors:
        raise ValueError("no tensor visual.proj: can read CLIP with a vision transformer only")
    image_width, dimension = tensors["visual.proj"].shape
    patch = tensors["visual.conv1.weight"].shape[-1]
    side = round((len(tensors["visual.positional_embedding"]) - 1) ** 0.5)
    vocab_size, width = tensors["token_embedding.weight"].shape

    def depth(prefix: str) -> int:
        found = (re.match(rf"{prefix}resblocks\.(\d+)\.", name) for name in tensors)
        return 1 + max(int(match[1]) for match in found if match)

    return CLIPConfig(
        in_channels=3,
        out_channels=dimension,
        image_size=side * patch,
        embedding_dim=dimension,
        patch_size=patch,
        image_width=image_width,
        image_depth=depth(r"visual\.transformer\."),
        image_heads=image_width // 64,
        vocab_size=vocab_size,
        context_length=len(tensors["positional_embedding"]),
        text_width=width,
        text_depth=depth(r"transformer\."),
        text_heads=width // 64,
    )


def clip_from_transformers(tensors: Mapping[str, np.ndarray], config: CLIPConfig) -> Params:
    """Parameters of `CLIP(config)` from a state dict of CLIPModel."""
    tensors = _without_ids(tensors)
    names: dict[str, str | tuple[str, ...]] = {
        "image_projection": "visual_projection",
        "text_projection": "text_projection",
        "similarity": "similarity",
    }
    for tower, parts, where, depth in (
        ("image", _IMAGE, "vision_model", config.image_depth),
        ("text", _TEXT, "text_model", config.text_depth),
    ):
        tensors = _stacked(tensors, f"{where}.", depth)
        names |= _tower(f"{tower}/", parts, f"{where}.")
    patches = "vision_model.embeddings.patch_embedding.weight"
    if patches in tensors:
        # (out, channel, row, column) of a convolution to a dense layer over (row, column, channel).
        kernel = np.moveaxis(tensors[patches], 1, -1)
        tensors[patches] = kernel.reshape(len(kernel), -1)
    for name, new in (("logit_scale", "logit_scale"), ("logit_bias", "bias")):
        if name in tensors:
            tensors[f"similarity.{new}"] = tensors.pop(name).reshape(())
    return fill(make_clip(config), tensors, names)


def text_tower_from_transformers(tensors: Mapping[str, np.ndarray], config: CLIPConfig) -> Params:
    """Parameters of `TextTower(config)` from CLIPTextModel, with a projection or without.

    Names begin with text_model or, as newer versions write them, do not; a projection is left.
    """
    tensors = {
        re.sub(r"^text_model\.", "", name): tensor
        for name, tensor in _without_ids(tensors).items()
        if name != "text_projection.weight"
    }
    tensors = _stacked(tensors, "", config.text_depth)
    return fill(make_text_tower(config), tensors, _tower("", _TEXT, ""))


def clip_from_openai(tensors: Mapping[str, np.ndarray], config: CLIPConfig) -> Params:
    """Parameters of `CLIP(config)` from OpenAI's state dict, or from either of OpenCLIP's."""
    renamed = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^text\.", "", name)
        if name in (*_NUMBERS, "attn_mask"):
            continue
        if name in ("visual.proj", "text_projection"):  # these stand to the right of the vector
            tensor = tensor.T
        for pattern, new in _OPENAI:
            name = re.sub(pattern, new, name)
        if match := re.fullmatch(r"(.*)\.attn\.in_proj_(weight|bias)", name):
            for letter, part in zip("qkv", np.split(tensor, 3), strict=True):
                renamed[f"{match[1]}.self_attn.{letter}_proj.{match[2]}"] = part
        else:
            renamed[name] = tensor
    return clip_from_transformers(renamed, config)


def _without_ids(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without the numbers 0, 1, ... that old files keep."""
    return {name: value for name, value in tensors.items() if not name.endswith("position_ids")}


def _stacked(tensors: Mapping[str, np.ndarray], theirs: str, depth: int) -> dict[str, np.ndarray]:
    """The layers of a tower put together along an axis of depth."""
    return stack_layers(tensors, f"{theirs}encoder.layers.", f"{theirs}layers.", depth)


def _tower(ours: str, parts: Mapping[str, str], theirs: str) -> Names:
    """Names of a tower, after `_stacked`."""
    names = {f"{ours}{name}".rstrip("/"): f"{theirs}{there}" for name, there in parts.items()}
    for name, there in _BLOCK.items():
        there = (there,) if isinstance(there, str) else there
        names[f"{ours}blocks/{name}"] = tuple(f"{theirs}layers.{part}" for part in there)
    return names
