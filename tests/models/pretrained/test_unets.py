"""The readers and the U-Net against outputs of diffusers, guided-diffusion, improved-diffusion."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from models.pretrained.diffusers import unet_config, unet_from_diffusers
from models.pretrained.openai import unet_from_openai
from models.unet import UNetConfig, make_unet
from tests.golden.models import generated

GOLDEN = pathlib.Path("tests/golden/models")
ADM = UNetConfig(
    in_channels=3,
    out_channels=6,
    image_size=16,
    channels=32,
    channel_mult=(1, 2, 2),
    num_res_blocks=1,
    attention_resolutions=(8, 4),
    head_channels=16,
    conditioning="scale_shift",
    resample="resblock",
    time_embedding="adm",
    norm_eps=1e-5,
    num_classes=10,
)
IDDPM = UNetConfig(
    in_channels=3,
    out_channels=6,
    image_size=16,
    channels=32,
    channel_mult=(1, 2),
    attention_resolutions=(8,),
    num_heads=4,
    conditioning="scale_shift",
    resample="conv_symmetric",
    time_embedding="adm",
    norm_eps=1e-5,
)


def golden(case):
    text = json.loads((GOLDEN / f"{case}.json").read_text())
    tensors = {name: generated.tensor(name, shape) for name, shape in text["shapes"].items()}
    return text["config"], tensors, np.load(GOLDEN / f"{case}.npz")["output"]


def run(config, params):
    x = generated.images(len(generated.TIMES), 3, config.image_size).transpose(0, 2, 3, 1)
    condition = {"label": np.array(generated.LABELS)} if config.num_classes else None
    output = jax.jit(make_unet(config).apply)(params, x, np.array(generated.TIMES), condition)
    return np.asarray(output).transpose(0, 3, 1, 2)


def relative_error(output, expected):
    return np.abs(output - expected).max() / np.abs(expected).max()


def test_diffusers_ddpm():
    fields, tensors, expected = golden("diffusers_ddpm")
    config = unet_config(fields)
    output = run(config, unet_from_diffusers(tensors, config))
    assert relative_error(output, expected) < 1e-5


def test_guided_diffusion():
    _, tensors, expected = golden("guided_diffusion")
    output = run(ADM, unet_from_openai(tensors, ADM, new_attention_order=True))
    assert relative_error(output, expected) < 1e-5


def test_improved_diffusion():
    _, tensors, expected = golden("improved_diffusion")
    output = run(IDDPM, unet_from_openai(tensors, IDDPM, new_attention_order=False))
    assert relative_error(output, expected) < 1e-5


def test_diffusers_names_of_old_files():
    fields, tensors, _ = golden("diffusers_ddpm")
    config = unet_config(fields)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for key, value in tensors.items():
        for new, name in old.items():
            key = key.replace(new, name)
        renamed[key] = value
    assert renamed.keys() != tensors.keys()
    same = jax.tree.map(
        np.array_equal,
        unet_from_diffusers(tensors, config),
        unet_from_diffusers(renamed, config),
    )
    assert jax.tree.all(same)


def test_google_ddpm_cifar10_32():
    """The config.json of google/ddpm-cifar10-32 is the network of the paper."""
    fields, _, _ = golden("diffusers_ddpm")
    fields |= {
        "block_out_channels": [128, 256, 256, 256],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "norm_num_groups": 32,
        "sample_size": 32,
    }
    paper = UNetConfig(in_channels=3, out_channels=3, image_size=32, dropout=0.0, init="torch")
    assert unet_config(fields) == paper


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("time_embedding_type", "fourier"),
        ("class_embed_type", "timestep"),
        ("freq_shift", 0),
        ("up_block_types", ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D"]),
        ("resnet_time_scale_shift", "spatial"),
        ("downsample_padding", 2),
    ],
)
def test_diffusers_config_that_is_another_network(field, value):
    fields, _, _ = golden("diffusers_ddpm")
    with pytest.raises(ValueError, match=field):
        unet_config(fields | {field: value})


def test_the_wrong_depth_is_told_by_name():
    _, tensors, _ = golden("improved_diffusion")
    shallow = dataclasses.replace(IDDPM, num_res_blocks=1)
    with pytest.raises(ValueError, match=r"output_blocks\.5\.0\.in_layers\.0\.weight .* no place"):
        unet_from_openai(tensors, shallow, new_attention_order=False)
