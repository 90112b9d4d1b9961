"""Resizing against PIL here, and against other programs' outputs that are kept."""

import pathlib

import jax
import numpy as np
import pytest
from hypothesis import given, strategies
from PIL import Image

from evaluation import resize
from tests.golden.models import inception_weights

EXPECTED = np.load(pathlib.Path("tests/golden/evaluation/resize.npz"))
SIDES = strategies.integers(2, 60)
KERNELS = (resize.tensorflow1, resize.half_pixel, resize.bicubic)


@pytest.mark.parametrize("side", inception_weights.SIDES)
def test_clean_is_clean_fids(side):
    images = np.float32(inception_weights.images(side))
    found = np.asarray(resize.clean(images, 299))[:, ::23, ::23]
    expected = np.load("tests/golden/models/inception.npz")[f"{side}/clean_resized"]
    assert np.abs(found - expected).max() < 1e-3


@pytest.mark.parametrize("name", ["tf1", "torch", "antialiased"])
@pytest.mark.parametrize("side", [20, 45])
def test_other_programs(name, side):
    """torch-fidelity's, PyTorch's without and with antialias, to 32 pixels."""
    images = np.float32(inception_weights.images(side))
    found = resize.RESIZES[name](images, 32)
    assert np.abs(found - EXPECTED[f"{name}/{side}"]).max() < 1e-3


@pytest.mark.parametrize("shape", [(20, 20), (45, 45), (300, 517), (224, 224), (1100, 1100)])
def test_pil_is_pils_on_8_bits(shape):
    """To the bit, at noise, edges of black and white, and sides that are whole multiples."""
    images = np.random.RandomState(0).randint(0, 256, (2, *shape, 3)).astype(np.uint8)
    images[1] = 255 * (images[1] > 127)
    found = jax.jit(lambda x: resize.pil(x, 224))(np.float32(images))
    expected = [Image.fromarray(i).resize((224, 224), Image.BICUBIC) for i in images]
    np.testing.assert_array_equal(found, np.stack(expected))


@given(SIDES, SIDES, strategies.sampled_from(KERNELS))
def test_a_flat_image_stays_flat_and_its_own_size_changes_nothing(before, after, kernel):
    np.testing.assert_allclose(kernel(before, after).sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(kernel(before, before), np.eye(before), atol=1e-12)


def test_images_need_not_be_square():
    images = np.float32(inception_weights.images(40)[:, :24])
    found = np.asarray(resize.clean(images, 30))
    for image, out in zip(images, found, strict=True):
        channel = Image.fromarray(image[..., 1]).resize((30, 30), Image.BICUBIC)
        assert np.abs(np.asarray(channel).clip(0, 255) - out[..., 1]).max() < 1e-3
    middle = resize.square(images)
    np.testing.assert_array_equal(middle, images[:, :, 8:32])
