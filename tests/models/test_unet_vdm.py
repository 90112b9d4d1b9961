"""VDM's network (Kingma et al., 2021), a U-Net of one level, against google-research/vdm."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from models import count_parameters
from models.pretrained.convert import fill
from models.unet import UNetConfig, make_unet
from tests.golden.models import generated
from tests.models.test_unet import SMALL, abstract

GOLDEN = pathlib.Path("tests/golden/models")
CIFAR10 = UNetConfig(
    in_channels=3,
    out_channels=3,
    image_size=32,
    channel_mult=(1,),
    num_res_blocks=32,
    attention_resolutions=(),
    fourier_features=(7, 8),
)
SMALLER = dataclasses.replace(CIFAR10, image_size=8, channels=64, num_res_blocks=2)
RESIDUAL = {
    "norm1": "GroupNorm_0",
    "conv1": "conv1",
    "condition": "cond_proj",
    "norm2": "GroupNorm_1",
    "conv2": "conv2",
    "shortcut": "nin_shortcut",
}
ATTENTION = {"norm": ("GroupNorm_0",), "qkv": ("q", "k", "v"), "projection": ("proj_out",)}


def names(config):
    blocks = {"middle/0": "mid.block_1", "middle/1": "mid.block_2"}
    for i in range(config.num_res_blocks + 1):
        blocks |= {f"encoder/0/blocks/{i}": f"down.block_{i}"}
        blocks |= {f"decoder/0/blocks/{i}": f"up.block_{i}"}
    attention = {
        f"middle/0/attention/{ours}": tuple(f"mid.attn_1/{part}" for part in theirs)
        for ours, theirs in ATTENTION.items()
    }
    return attention | {
        "time1": "dense0",
        "time2": "dense1",
        "conv_in": "conv_in",
        "norm_out": "GroupNorm_0",
        "conv_out": "conv_out",
        **{
            f"{ours}/residual/{a}": f"{theirs}/{b}"
            for ours, theirs in blocks.items()
            for a, b in RESIDUAL.items()
        },
    }


def test_parameter_count():
    theirs = json.loads((GOLDEN / "vdm.json").read_text())["cifar10"]
    assert round(theirs / 1e6, 1) == 30.6
    # Their layer of time in each block has no bias (the convolution before it has one), and their
    # first layer of time sees one number more, which is 0 for all of CIFAR-10.
    blocks = 32 + 2 + 33
    assert count_parameters(abstract(CIFAR10)) == theirs + blocks * 128 - 4 * 128


def test_forward():
    shapes = json.loads((GOLDEN / "vdm.json").read_text())["shapes"]
    tensors = {name: generated.tensor(name, shape) for name, shape in shapes.items()}
    tensors["dense0.weight"] = tensors["dense0.weight"][:, :-1]
    for name in [name for name in tensors if name.endswith("cond_proj.weight")]:
        bias = name.replace("weight", "bias")
        assert bias not in tensors
        tensors[bias] = np.zeros(len(tensors[name]), np.float32)
    params = fill(make_unet(SMALLER), tensors, names(SMALLER))
    x = generated.images(len(generated.TIMES), 3, 8).transpose(0, 2, 3, 1)
    output = jax.jit(make_unet(SMALLER).apply)(params, x, np.array(generated.TIMES))
    expected = np.load(GOLDEN / "vdm.npz")["output"] - x  # theirs adds its input
    assert np.abs(output - expected).max() < 1e-5 * np.abs(expected).max()


def test_features_are_made_in_float32():
    """One step of an 8-bit image is a whole turn of the fastest wave in bfloat16."""
    config = dataclasses.replace(SMALL, fourier_features=(8,), dtype="bfloat16", dropout=0.0)
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), abstract(config))
    # The first convolution sees sin(2^8 pi x) alone: channels are (x, sin, cos) of three each.
    kernel = np.zeros((3, 3, 9, 8), np.float32)
    kernel[1, 1, 3:6] = np.random.default_rng(0).standard_normal((3, 8))
    params["conv_in"]["kernel"] = jnp.asarray(kernel)
    apply = jax.jit(make_unet(config).apply)
    x = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    output = apply(params, x, jnp.zeros(2))
    turned = apply(params, x + np.float32(2**-7), jnp.zeros(2))  # a whole turn later
    half = apply(params, x + np.float32(2**-8), jnp.zeros(2))  # and half of one
    np.testing.assert_allclose(turned, output, atol=0.02 * np.abs(output).max())
    assert np.abs(half - output).max() > 0.1 * np.abs(output).max()
