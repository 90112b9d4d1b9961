"""The readers and the U-Net against outputs of diffusers, guided-diffusion, improved-diffusion."""

import json
import pathlib

import jax
import numpy as np
import pytest

from models.pretrained.diffusers import unet_config, unet_from_diffusers
from models.pretrained.openai import unet_from_openai
from models.unet import UNetConfig, unet
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
    output = jax.jit(unet(config).apply)(params, x, np.array(generated.TIMES), condition)
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
