import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from input_pipeline import DEVICE_AUGMENTATIONS
from input_pipeline.geometric import Transform, apply, edm

HEIGHT, WIDTH = 8, 16
BATCH = 13
IMAGES = np.random.default_rng(0).uniform(-1, 1, (BATCH, HEIGHT, WIDTH, 3)).astype(np.float32)
warp = jax.jit(apply)


def transform(rows):
    """A Transform of [batch, 8] numbers, in the order of its fields."""
    rows = jnp.asarray(rows, jnp.float32)
    return Transform(rows[:, 0] > 0, rows[:, 1] > 0, *rows[:, 2:6].T, rows[:, 6:])


@functools.cache
def augment(probability):
    return jax.jit(edm(probability))


def test_edm_pipe():
    """EDM's own pipe with its random numbers replaced; see tests/golden/make_geometric.py."""
    golden = np.load("tests/golden/geometric.npz")
    steps = transform(golden["transforms"])
    np.testing.assert_allclose(steps.labels(), golden["labels"], atol=1e-6)
    np.testing.assert_allclose(steps.inverse(HEIGHT, WIDTH), golden["inverse"], atol=1e-5)
    output = warp(golden["images"].transpose(0, 2, 3, 1), steps)
    np.testing.assert_allclose(output, golden["output"].transpose(0, 2, 3, 1), atol=1e-4)


def test_probability_zero_is_the_identity():
    images, labels = augment(0.0)(IMAGES, jax.random.key(0))
    np.testing.assert_array_equal(images, IMAGES)
    assert not labels.any()


@hypothesis.given(st.booleans(), st.booleans())
def test_flips_are_exact(flip_x, flip_y):
    rows = np.zeros((BATCH, 8))
    rows[:, 0], rows[:, 1] = flip_x, flip_y
    expected = IMAGES[:, :: -1 if flip_y else 1, :: -1 if flip_x else 1]
    np.testing.assert_array_equal(warp(IMAGES, transform(rows)), expected)


@hypothesis.given(st.integers(-WIDTH + 1, WIDTH - 1), st.integers(-HEIGHT + 1, HEIGHT - 1))
def test_shifts_by_whole_pixels_are_exact_and_mirror(x, y):
    """The other half of sym6's taps is orthogonal to it: up and down again loses nothing."""
    rows = np.zeros((BATCH, 8))
    rows[:, 6], rows[:, 7] = x / (0.125 * WIDTH), y / (0.125 * HEIGHT)
    output = np.asarray(warp(IMAGES, transform(rows)))
    padding = ((0, 0), (HEIGHT - 1,) * 2, (WIDTH - 1,) * 2, (0, 0))
    mirrored = np.pad(IMAGES, padding, mode="reflect")
    top, left = HEIGHT - 1 - y, WIDTH - 1 - x
    expected = mirrored[:, top : top + HEIGHT, left : left + WIDTH]
    # Beyond the mirror images is zero, which the filter sees from three pixels away.
    rows_in = slice(max(0, 3 - top), HEIGHT - max(0, top + 3 - 2 * (HEIGHT - 1)))
    columns_in = slice(max(0, 3 - left), WIDTH - max(0, left + 3 - 2 * (WIDTH - 1)))
    np.testing.assert_allclose(
        output[:, rows_in, columns_in], expected[:, rows_in, columns_in], atol=1e-5
    )


def test_rotation_is_counterclockwise():
    """A blot right of the centre goes up; not exactly, for sym6 is not symmetric."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]

    def blot(right, down):
        distance = (x - (WIDTH - 1) / 2 - right) ** 2 + (y - (HEIGHT - 1) / 2 - down) ** 2
        image = np.exp(-distance / 4).astype(np.float32)
        return np.broadcast_to(image[:, :, None], IMAGES.shape)

    rows = np.zeros((BATCH, 8))
    rows[:, 3] = angles = np.linspace(-np.pi, np.pi, BATCH)
    output = warp(blot(2, 0), transform(rows))
    for image, angle in zip(np.asarray(output), angles, strict=True):
        expected = blot(2 * np.cos(angle), -2 * np.sin(angle))[0]
        assert np.abs(image - expected)[2:-2, 4:-4].max() < 0.05


def test_larger_scale_enlarges():
    """Five standard deviations are a factor of two: the image's middle half fills the result."""
    ramp = np.broadcast_to(np.linspace(-1, 1, WIDTH)[:, None], IMAGES.shape).astype(np.float32)
    rows = np.zeros((BATCH, 8))
    rows[:, 2] = 5
    output = np.asarray(warp(ramp, transform(rows)))
    np.testing.assert_allclose(output[:, :, 3:-3], ramp[:, :, 3:-3] / 2, atol=0.01)


def test_labels_are_zero_exactly_where_nothing_was_done():
    seen = 0
    for seed in range(4):
        images, labels = augment(0.12)(IMAGES, jax.random.key(seed))
        untouched = (np.asarray(images) == IMAGES).all(axis=(1, 2, 3))
        np.testing.assert_array_equal(untouched, ~np.asarray(labels).any(axis=1))
        seen += untouched.sum()
    assert 0 < seen < 4 * BATCH


def test_draws_have_their_probabilities_and_widths():
    count = 20_000
    steps = edm(0.12).draw(jax.random.key(0), count)
    rate = lambda x: float(np.mean(np.asarray(x) != 0))  # noqa: E731
    assert abs(rate(steps.flip_x) - 0.5) < 0.015
    assert abs(rate(steps.flip_y) - 0.06) < 0.008
    assert abs(rate(steps.axis) - 0.5) < 0.015
    for values in (steps.scale, steps.rotation, steps.anisotropy, steps.shift[:, 0]):
        assert abs(rate(values) - 0.12) < 0.01
    for values in (steps.scale, steps.anisotropy, steps.shift[:, 0], steps.shift[:, 1]):
        assert abs(np.asarray(values)[values != 0].std() - 1) < 0.06
    rotation = np.asarray(steps.rotation)[steps.rotation != 0]
    assert abs(rotation.std() - np.pi / 3**0.5) < 0.06
    assert -np.pi <= rotation.min() < -3.1
    assert 3.1 < rotation.max() <= np.pi
    # Along both axes together or not at all.
    assert ((steps.shift[:, 0] != 0) == (steps.shift[:, 1] != 0)).all()


def test_images_do_not_share_a_draw_or_a_result():
    key = jax.random.key(3)
    images, labels = augment(0.9)(np.broadcast_to(IMAGES[:1], IMAGES.shape), key)
    assert len(np.unique(np.asarray(labels), axis=0)) == BATCH
    again, _ = augment(0.9)(np.concatenate([IMAGES[:1], IMAGES[1:]]), key)
    np.testing.assert_allclose(again[0], images[0], atol=1e-6)
    other, _ = augment(0.9)(np.broadcast_to(IMAGES[:1], IMAGES.shape), jax.random.key(4))
    assert np.abs(other - images).max() > 0.1
    assert augment(0.9)._cache_size() == 1


def test_registry_and_range():
    assert DEVICE_AUGMENTATIONS["edm"]().probability == 0.12
    labels = jax.eval_shape(edm(), IMAGES, jax.random.key(0))[1]
    assert labels.shape == (BATCH, edm().dim)
    with pytest.raises(ValueError, match=r"between 0 and 1, not 1\.5"):
        edm(1.5)
