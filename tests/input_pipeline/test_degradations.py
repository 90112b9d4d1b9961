import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from input_pipeline import degradations
from input_pipeline.degradations import add_noise, blur, bsr, degrade, random_blur
from input_pipeline.images import to_array
from input_pipeline.sources import shapes_render

KEY = jax.random.key(0)
LEVELS = jnp.array([0.0, 0.3, 1.0])


@pytest.fixture(scope="module")
def images():
    drawn = [shapes_render.render(shapes_render.scene("test", i), 32) for i in range(8)]
    return jnp.asarray(np.stack(drawn), jnp.float32)


@pytest.fixture(scope="module")
def run_bsr():
    return jax.jit(lambda images, key: bsr(images, key, 16))


def test_blur_is_scipys(images):
    expected = ndimage.gaussian_filter(
        np.asarray(images, np.float64), (0, 0.6, 0.6, 0), mode="mirror", truncate=1.2
    )
    np.testing.assert_allclose(blur(images), expected, atol=1e-2)


def test_random_blur_is_of_some_images(images):
    many = jnp.tile(images[:1], (400, 1, 1, 1))
    changed = np.any(np.asarray(random_blur(many, KEY, 0.3) != many), axis=(1, 2, 3))
    assert changed.mean() == pytest.approx(0.3, abs=0.08)
    np.testing.assert_array_equal(random_blur(images, KEY, 0.0), images)
    np.testing.assert_array_equal(random_blur(images, KEY, 1.0), blur(images))


def test_noise_has_a_level_for_each_image():
    x = 0.8 * jnp.ones((3, 64, 64, 3))
    noisy = np.asarray(add_noise(x, jax.random.normal(KEY, x.shape), LEVELS))
    np.testing.assert_array_equal(noisy[0], x[0])
    angle = np.pi / 2 * 0.3
    assert noisy[1].mean() == pytest.approx(0.8 * np.cos(angle), abs=0.02)
    assert noisy[1].std() == pytest.approx(np.sin(angle), abs=0.02)
    assert noisy[2].mean() == pytest.approx(0, abs=0.03)
    assert noisy[2].std() == pytest.approx(1, abs=0.03)


def test_kernels_are_blurs_of_random_widths():
    kernels = np.asarray(degradations._kernels(KEY, jnp.full(300, 4.0)))
    np.testing.assert_allclose(kernels.sum((1, 2)), 1, atol=1e-5)
    np.testing.assert_allclose(kernels, kernels[:, ::-1, ::-1], atol=1e-6)  # even: nothing moves
    off = np.arange(25) - 12
    rows = (kernels * off[:, None] ** 2).sum((1, 2))
    columns = (kernels * off**2).sum((1, 2))
    round_ones = abs(rows - columns) < 1e-4
    assert round_ones.mean() == pytest.approx(0.5, abs=0.12)
    assert rows.max() < 2.8**2 + 1
    assert 0 <= rows.min() < 0.2


def test_bsr(images, run_bsr):
    """In range, different for each image and key, and still the image."""
    results = [np.asarray(run_bsr(images, jax.random.key(i))) for i in range(12)]
    assert all(x.shape == (8, 16, 16, 3) and np.isfinite(x).all() for x in results)
    assert min(x.min() for x in results) >= 0
    assert max(x.max() for x in results) <= 255
    clean = np.asarray(degradations.resize(images, (16, 16), "area"))
    losses = [abs(x - clean).mean() for x in results]
    assert len({round(float(x), 3) for x in losses}) == 12
    # Far from unchanged, nearer to its own image than to another one.
    assert np.mean(losses) > 3
    assert np.mean(losses) < np.mean([abs(x - np.roll(clean, 1, 0)).mean() for x in results])
    same = run_bsr(images, jax.random.key(3))
    np.testing.assert_array_equal(same, results[3])


def test_bsr_of_a_plain_image_keeps_its_colour(run_bsr):
    plain = jnp.broadcast_to(jnp.array([200.0, 90.0, 40.0]), (8, 32, 32, 3))
    mean = np.asarray(run_bsr(plain, KEY)).mean((0, 1, 2))
    np.testing.assert_allclose(mean, [200, 90, 40], atol=4)


@pytest.mark.parametrize("reduction", ["area", "bicubic"])
@pytest.mark.parametrize("kind", ["none", "blur"])
def test_degrade(images, kind, reduction):
    x = images / 127.5 - 1
    small = degrade(x, KEY, 16, kind, probability=1.0, reduction=reduction)
    assert small.shape == (8, 16, 16, 3)
    # The blur is of the image that the network is told, three of its pixels wide.
    plain = degradations.resize(x, (16, 16), reduction)
    np.testing.assert_allclose(small, blur(plain) if kind == "blur" else plain, atol=1e-5)


def test_images_are_reduced_as_a_network_of_that_size_is_given_them(images):
    """By default: an upsampler is told what the model before it in a chain learns to make.

    Pillow rounds after each axis.
    """
    small = 127.5 * (np.asarray(degrade(images / 127.5 - 1, KEY, 16, "none")) + 1)
    for image, reduced in zip(np.asarray(images, np.uint8), small, strict=True):
        np.testing.assert_allclose(reduced, to_array(image, 16, 3), atol=1.01)
