"""The network and its reader against DINOv2's own code and transformers' Dinov2Model."""

import dataclasses
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from models.dinov2 import DINOv2Config, make_dinov2
from models.functional import count_parameters
from models.pretrained.dinov2 import dinov2_from_torch
from tests.golden.models import generated

GOLDEN = pathlib.Path("tests/golden/models")
SHAPES = json.loads((GOLDEN / "dinov2.json").read_text())
EXPECTED = np.load(GOLDEN / "dinov2.npz")
CONFIG = DINOv2Config(image_size=98, width=24, depth=3, heads=2)


def tensors(layout):
    return {name: generated.tensor(name, shape) for name, shape in SHAPES[layout].items()}


@pytest.mark.parametrize("case", list(EXPECTED))
def test_class_tokens(case):
    """Also at 42 pixels, for which the positions of 98 are interpolated."""
    layout, side = case.split("/")
    config = dataclasses.replace(CONFIG, image_size=int(side))
    params = dinov2_from_torch(tensors(layout), config)
    images = generated.images(2, 3, int(side)).transpose(0, 2, 3, 1)
    output = jax.jit(make_dinov2(config).apply)(params, images)
    assert np.abs(output - EXPECTED[case]).max() < 1e-5


def test_names_of_published_files():
    """Files of transformers have older names than its version here gives."""
    older = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value"}
    older["o_proj"] = "output.dense"
    given = tensors("transformers")
    renamed = {re.sub(r"([qkvo]_proj)", lambda m: older[m[1]], k): v for k, v in given.items()}
    assert "encoder.layer.2.attention.attention.query.weight" in renamed
    both = [dinov2_from_torch(each, CONFIG) for each in (given, renamed)]
    assert jax.tree.all(jax.tree.map(np.array_equal, *both))


@pytest.mark.parametrize("layout", list(SHAPES))
def test_what_does_not_fit_is_named(layout):
    given = tensors(layout)
    name = next(name for name in given if name.endswith("1.norm2.bias"))
    del given[name]
    with pytest.raises(ValueError, match=r"norm2\.bias"):
        dinov2_from_torch(given, CONFIG)
    with pytest.raises(ValueError, match=r"register_tokens .* has no place"):
        dinov2_from_torch(tensors(layout) | {"register_tokens": np.zeros((1, 4, 24))}, CONFIG)
    with pytest.raises(ValueError, match=r"blocks\.2\.\S* \S+ has no place"):
        dinov2_from_torch(tensors(layout), dataclasses.replace(CONFIG, depth=2))


def test_papers_size():
    """ViT-L/14 has 304.37 M parameters with positions of 37 x 37 patches and a mask token."""
    params = jax.eval_shape(make_dinov2(DINOv2Config(image_size=518)).init, jax.random.key(0))
    assert count_parameters(params) + 1024 == 304_368_640


@pytest.mark.parametrize(
    ("field", "value"), [("heads", 7), ("patch_size", 15), ("depth", 0), ("dtype", "float16")]
)
def test_mistakes(field, value):
    with pytest.raises(ValueError, match=f"{field}="):
        DINOv2Config(**{field: value})
