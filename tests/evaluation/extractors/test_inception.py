"""Inception's features against torch-fidelity's, pytorch-fid's and clean-fid's programs."""

import hashlib
import json
import pathlib

import jax
import numpy as np
import pytest

from evaluation.extractors import EXTRACTORS, Runner
from evaluation.extractors.inception import _RESIZES, _SCALINGS
from evaluation.resize import rgb
from models.inception import SIDE, make_inception
from tests.golden.models import inception_weights as given
from training.components import ConfigError, build
from training.mesh import make_mesh

EXPECTED = np.load(pathlib.Path("tests/golden/models/inception.npz"))
KINDS = {"tf1": ("tf1", "128"), "pytorch_fid": ("torch", "127.5"), "clean": ("clean", "128")}


@pytest.fixture(scope="module")
def features(inception):
    """Of all sides and kinds, the network compiled once: what differs is before it."""
    batch = []
    for side in given.SIDES:
        for resize, scaling in KINDS.values():
            middle, size = _SCALINGS[scaling]
            batch.append((_RESIZES[resize](rgb(given.images(side)), SIDE) - middle) / size)
    network = jax.jit(make_inception().apply)
    outputs = [network(inception.params, images)._asdict() for images in batch]
    names = [(side, kind) for side in given.SIDES for kind in KINDS]
    return dict(zip(names, outputs, strict=True))


@pytest.mark.parametrize("side", given.SIDES)
def test_torch_fidelity(features, side):
    for name, value in features[side, "tf1"].items():
        assert np.abs(value - EXPECTED[f"{side}/{name}"]).max() < 1e-4, name


@pytest.mark.parametrize("kind", ["pytorch_fid", "clean"])
@pytest.mark.parametrize("side", given.SIDES)
def test_other_programs(features, side, kind):
    assert np.abs(features[side, kind]["pool3"] - EXPECTED[f"{side}/{kind}"]).max() < 1e-4


def test_the_extractor_is_all_of_it(inception, features):
    """From uint8 on, and with a batch that is not full."""
    out = Runner(inception, make_mesh(devices=jax.devices()[:1]), batch_size=3)(given.images(32))
    assert {name: value.shape for name, value in out.items()} == {
        name: (given.COUNT, length) for name, length in inception.outputs.items()
    }
    for name, value in out.items():
        assert np.abs(value - features[32, "tf1"][name]).max() < 2e-5


def test_identity(inception, inception_file):
    other = EXTRACTORS["inception"](resize="clean", path=str(inception_file))
    assert inception.name == "inception-tf1-128"
    assert other.name == "inception-clean-128"
    digest = hashlib.sha256(inception_file.read_bytes()).hexdigest()
    assert json.loads(json.dumps(inception.identity))["weights"] == digest
    assert {k for k, v in inception.identity.items() if other.identity[k] != v} == {"resize"}


def test_grey_images_are_of_three_equal_channels():
    grey = given.images(32)[..., :1]
    np.testing.assert_array_equal(rgb(grey), np.float32(np.repeat(grey, 3, axis=-1)))
    with pytest.raises(ValueError, match="4 channels"):
        rgb(np.zeros((1, 2, 2, 4), np.uint8))


@pytest.mark.parametrize(
    ("string", "message"),
    [
        ("inception(resize='tf2')", r"resize='tf2': did you mean 'tf1'\? allowed: clean, tf1"),
        ("inception(scaling='1')", r"scaling='1': .*allowed: 127\.5, 128"),
        ("inception(path='nowhere.pth')", r"path='nowhere\.pth': there is no such file"),
    ],
)
def test_mistakes(string, message):
    with pytest.raises(ConfigError, match=message):
        build(EXTRACTORS, string, "config.evaluate")


def test_other_devices_give_the_same_features(inception):
    """The same rows of a batch on each; four devices have one image each, and one has all."""
    images = np.concatenate([given.images(32), given.images(32)[:, ::-1]])
    one, four = (
        Runner(inception, make_mesh(devices=jax.devices()[:n]), batch_size=3)(images)
        for n in (1, 4)
    )
    for name, value in one.items():
        assert np.abs(value - four[name]).max() <= 1e-6, name
