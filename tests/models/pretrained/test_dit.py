"""The network and its reader against facebookresearch/DiT."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from models.dit import DiTConfig, make_dit
from models.pretrained.dit import dit_from_facebook
from tests.golden.models import generated

GOLDEN = pathlib.Path("tests/golden/models")
CONFIG = DiTConfig(
    in_channels=3,
    out_channels=6,
    image_size=8,
    hidden_size=48,
    depth=3,
    num_heads=4,
    mlp_ratio=3.0,
    num_classes=10,
    null_class=True,
)
# The last stands for no label.
LABELS = np.array([0, 3, 10])


def tensors():
    shapes = json.loads((GOLDEN / "dit.json").read_text())
    return {name: generated.tensor(name, shape) for name, shape in shapes.items()}


def test_forward():
    x = generated.images(len(generated.TIMES), 3, 8).transpose(0, 2, 3, 1)
    params = dit_from_facebook(tensors(), CONFIG)
    apply = jax.jit(make_dit(CONFIG).apply)
    output = apply(params, x, np.array(generated.TIMES), {"label": LABELS})
    expected = np.load(GOLDEN / "dit.npz")["output"].transpose(0, 2, 3, 1)
    assert np.abs(output - expected).max() < 1e-5 * np.abs(expected).max()


def test_another_depth_is_refused():
    with pytest.raises(ValueError, match=r"tensor blocks\.2\.attn\.qkv\.weight .* has no place"):
        dit_from_facebook(tensors(), dataclasses.replace(CONFIG, depth=2))
    with pytest.raises(ValueError, match=r"no tensor blocks\.attn\.qkv\.weight"):
        dit_from_facebook(tensors(), dataclasses.replace(CONFIG, depth=4))
