"""U-Nets that are told of tokens, against outputs of diffusers' UNet2DConditionModel."""

import json
import pathlib

import jax
import numpy as np
import pytest

from models import count_parameters
from models.pretrained.diffusers import unet_from_diffusers
from models.pretrained.diffusers_conditional import conditional_unet_config
from models.unet import UNetConfig, make_unet
from tests.golden.models import generated
from tests.models.pretrained.test_unets import golden, relative_error

COUNTS = json.loads(pathlib.Path("tests/golden/models/counts.json").read_text())
# unet/config.json of stable-diffusion-v1-5.
STABLE_DIFFUSION = {
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": [
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": [
        "UpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
    ],
}
KARLO = {
    "attention_head_dim": 64,
    "block_out_channels": [320, 640, 960, 1280],
    "class_embed_type": "identity",
    "cross_attention_dim": 1536,
    "down_block_types": [
        "ResnetDownsampleBlock2D",
        "SimpleCrossAttnDownBlock2D",
        "SimpleCrossAttnDownBlock2D",
        "SimpleCrossAttnDownBlock2D",
    ],
    "in_channels": 3,
    "layers_per_block": 3,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "out_channels": 6,
    "resnet_time_scale_shift": "scale_shift",
    "sample_size": 64,
    "up_block_types": [
        "SimpleCrossAttnUpBlock2D",
        "SimpleCrossAttnUpBlock2D",
        "SimpleCrossAttnUpBlock2D",
        "ResnetUpsampleBlock2D",
    ],
}


def count(config):
    return count_parameters(jax.eval_shape(make_unet(config).init, jax.random.key(0)))


def test_stable_diffusion_is_a_setting():
    config = UNetConfig(
        in_channels=4,
        out_channels=4,
        image_size=64,
        channels=320,
        channel_mult=(1, 2, 4, 4),
        attention_resolutions=(64, 32, 16),
        num_heads=8,
        dropout=0.0,
        resample="conv_symmetric",
        time_embedding="adm",
        norm_eps=1e-5,
        init="torch",
        context="cross",
        context_dim=768,
    )
    assert conditional_unet_config(STABLE_DIFFUSION) == config
    assert count(config) == COUNTS["stable-diffusion-1.5"] == 859_520_964


def test_the_decoder_of_karlo_is_a_setting():
    config = conditional_unet_config(KARLO)
    # It adds its vector as it is, where ours has a layer.
    layer = 1280 * 1280 + 1280
    assert count(config) == COUNTS["karlo-decoder"] + layer


@pytest.mark.parametrize("case", ["diffusers_cross", "diffusers_kv"])
def test_forward(case):
    fields, tensors, expected = golden(case)
    config = conditional_unet_config(fields)
    params = unet_from_diffusers(tensors, config)
    batch = len(generated.TIMES)
    x = generated.images(batch, 3, config.image_size).transpose(0, 2, 3, 1)
    condition = {
        "context": generated.normal(batch, 5, config.context_dim),
        "context_mask": np.array(generated.MASK, bool),
        "embedding": generated.normal(batch, config.embedding_dim),
    }
    output = jax.jit(make_unet(config).apply)(params, x, np.array(generated.TIMES), condition)
    assert relative_error(np.asarray(output).transpose(0, 3, 1, 2), expected) < 1e-5


def test_linear_projections_are_the_convolutions():
    fields, tensors, _ = golden("diffusers_cross")
    flat = {
        key: value[..., 0, 0] if "attentions" in key and value.ndim == 4 else value
        for key, value in tensors.items()
    }
    assert {k: v.shape for k, v in flat.items()} != {k: v.shape for k, v in tensors.items()}
    config = conditional_unet_config(fields | {"use_linear_projection": True})
    same = jax.tree.map(
        np.array_equal,
        unet_from_diffusers(tensors, conditional_unet_config(fields)),
        unet_from_diffusers(flat, config),
    )
    assert jax.tree.all(same)


def test_heads_of_one_width():
    fields = STABLE_DIFFUSION | {"attention_head_dim": [5, 10, 20, 20]}
    assert conditional_unet_config(fields).head_channels == 64
    with pytest.raises(ValueError, match=r"attention_head_dim=\[5, 10, 10, 20\]: can read one"):
        conditional_unet_config(fields | {"attention_head_dim": [5, 10, 10, 20]})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mid_block_type", None),
        ("addition_embed_type", "text_time"),
        ("class_embed_type", "projection"),
        ("encoder_hid_dim_type", "image_proj"),
        ("only_cross_attention", True),
        ("up_block_types", ["UpBlock2D"] * 4),
        ("down_block_types", KARLO["down_block_types"]),
        ("layers_per_block", [2, 2, 2, 1]),
        ("freq_shift", 1),
    ],
)
def test_a_config_that_is_another_network(field, value):
    with pytest.raises(ValueError, match=field):
        conditional_unet_config(STABLE_DIFFUSION | {field: value})


def test_attention_of_another_eps_is_another_network():
    with pytest.raises(ValueError, match="norm_eps=1e-06"):
        conditional_unet_config(KARLO | {"norm_eps": 1e-6})
