"""The network and its readers against transformers' CLIPModel and CLIPTextModel."""

import dataclasses
import json
import pathlib
import re

import jax
import numpy as np
import pytest

import models
from models.clip import CLIPConfig, make_clip, make_text_tower
from models.pretrained import clip as reader
from tests.golden.models import generated

GOLDEN = pathlib.Path("tests/golden/models")
TOLD = json.loads((GOLDEN / "clip.json").read_text())
EXPECTED = np.load(GOLDEN / "clip.npz")
TOKENS = np.array(
    [[3, 9, 40, 45, 40, 45, 0], [3, 45, 11, 12, 13, 14, 40], [3, 40, 40, 40, 49, 40, 49]], np.int32
)
IMAGES = generated.images(3, 3, 8).transpose(0, 2, 3, 1)


def tensors(name):
    return {key: generated.tensor(key, shape) for key, shape in TOLD[name]["shapes"].items()}


def near(output, name):
    expected = EXPECTED[name]
    return np.abs(output - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["old", "new"])
def test_forward(name):
    """quick_gelu and the largest id; gelu and the first end token."""
    config = reader.clip_config(TOLD[name]["config"])
    params = reader.clip_from_transformers(tensors(name), config)
    out = jax.jit(make_clip(config).apply)(params, IMAGES, TOKENS)
    assert near(out.image_embedding, f"{name}/image_embedding")
    assert near(out.text_features, f"{name}/text_features")
    assert near(out.text_embedding, f"{name}/text_embedding")
    image, text = (
        x / np.linalg.norm(x, axis=1, keepdims=True)
        for x in (out.image_embedding, out.text_embedding)
    )
    assert near(out.scale * image @ text.T, f"{name}/logits")


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_tower_under_either_name(prefix):
    config = reader.clip_config(TOLD["new"]["config"])
    # CLIPTextModel has no prefix; CLIPTextModelWithProjection has, and a projection.
    given = {re.sub(r"^(text_model\.)?", prefix, k): v for k, v in tensors_of_text().items()}
    given |= {"text_projection.weight": np.zeros((20, 24), np.float32)} if prefix else {}
    given[f"{prefix}embeddings.position_ids"] = np.arange(7, dtype=np.float32)[None]
    params = reader.text_tower_from_transformers(given, config)
    features, pooled = jax.jit(make_text_tower(config).apply)(params, TOKENS)
    assert near(features, "text/text_features")
    assert near(pooled, "text/pooled")


def tensors_of_text():
    return tensors("text")


def openai_names(tensors):
    """The state dict as OpenAI's code has it: another order of blocks, q k v as one."""
    table = {
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "logit_scale": "logit_scale",
    }
    for kind in ("weight", "bias"):
        table[f"vision_model.pre_layrnorm.{kind}"] = f"visual.ln_pre.{kind}"
        table[f"vision_model.post_layernorm.{kind}"] = f"visual.ln_post.{kind}"
        table[f"text_model.final_layer_norm.{kind}"] = f"ln_final.{kind}"
        for tower, there, depth in (("vision", "visual.", 2), ("text", "", 3)):
            for i in range(depth):
                old, new = f"{tower}_model.encoder.layers.{i}", f"{there}transformer.resblocks.{i}"
                table[f"{old}.self_attn.out_proj.{kind}"] = f"{new}.attn.out_proj.{kind}"
                table[f"{old}.layer_norm1.{kind}"] = f"{new}.ln_1.{kind}"
                table[f"{old}.layer_norm2.{kind}"] = f"{new}.ln_2.{kind}"
                table[f"{old}.mlp.fc1.{kind}"] = f"{new}.mlp.c_fc.{kind}"
                table[f"{old}.mlp.fc2.{kind}"] = f"{new}.mlp.c_proj.{kind}"
    named = {new: tensors[old] for old, new in table.items()}
    for tower, there, depth in (("vision", "visual.", 2), ("text", "", 3)):
        for i in range(depth):
            for kind in ("weight", "bias"):
                parts = [
                    tensors[f"{tower}_model.encoder.layers.{i}.self_attn.{x}_proj.{kind}"]
                    for x in "qkv"
                ]
                key = f"{there}transformer.resblocks.{i}.attn.in_proj_{kind}"
                named[key] = np.concatenate(parts)
    named["visual.proj"] = tensors["visual_projection.weight"].T
    named["text_projection"] = tensors["text_projection.weight"].T
    return named


def same(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_openai_and_open_clip_layouts():
    config = reader.clip_config(TOLD["old"]["config"])
    expected = reader.clip_from_transformers(tensors("old"), config)
    given = openai_names(tensors("old"))
    scripted = given | {"context_length": np.float32(7), "input_resolution": np.float32(8)}
    assert same(reader.clip_from_openai(scripted, config), expected)
    inside = {k if re.match("visual|logit", k) else f"text.{k}": v for k, v in given.items()}
    inside["text.attn_mask"] = np.zeros((7, 7), np.float32)
    assert "text.text_projection" in inside
    assert same(reader.clip_from_openai(inside, config), expected)
    biased = dataclasses.replace(config, logit_bias=True)
    params = reader.clip_from_openai(given | {"logit_bias": np.full(1, -9.0, "f")}, biased)
    assert params["similarity"]["bias"] == -9.0


def test_openai_shapes_tell_the_config():
    def shape(*size):
        return np.broadcast_to(np.float32(0), size)

    given = {
        "visual.proj": shape(1024, 768),
        "visual.conv1.weight": shape(1024, 3, 14, 14),
        "visual.positional_embedding": shape(257, 1024),
        "token_embedding.weight": shape(49408, 768),
        "positional_embedding": shape(77, 768),
        "visual.transformer.resblocks.23.ln_1.bias": shape(1024),
        "transformer.resblocks.11.ln_1.bias": shape(768),
    }
    assert reader.openai_config(given) == CLIPConfig(3, 768, 224)
    with pytest.raises(ValueError, match=r"visual\.proj: .* vision transformer only"):
        reader.openai_config({"visual.attnpool.c_proj.weight": shape(1)})


def count(config):
    params = jax.eval_shape(make_clip(config).init, jax.random.key(0))
    return models.count_parameters(params)


def test_papers_sizes():
    assert count(CLIPConfig(3, 768, 224)) == pytest.approx(427.62e6, rel=1e-5)
    vit_h = {
        "embed_dim": 1024,
        "vision_cfg": {"layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
        "text_cfg": {"width": 1024, "heads": 16, "layers": 24},
    }
    config = reader.open_clip_config(vit_h)
    assert (config.image_heads, config.activation) == (16, "gelu")
    assert count(config) == pytest.approx(986.11e6, rel=1e-5)


def test_what_does_not_fit_is_named():
    config = reader.clip_config(TOLD["old"]["config"])
    with pytest.raises(ValueError, match=r"tensor text_model\.encoder\.layers\.2\..* no place"):
        reader.clip_from_transformers(tensors("old"), dataclasses.replace(config, text_depth=2))
    lacking = tensors("old")
    del lacking["vision_model.pre_layrnorm.bias"]
    with pytest.raises(ValueError, match=r"no tensor vision_model\.pre_layrnorm\.bias"):
        reader.clip_from_transformers(lacking, config)
    other = {"text_config": {"hidden_act": "gelu"}, "vision_config": {"hidden_act": "quick_gelu"}}
    with pytest.raises(ValueError, match="hidden_act"):
        reader.clip_config(other)
