import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from models.edm_blocks import downsample, upsample

FILTERS = pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)], ids=["box", "fir"])
X = np.random.default_rng(0).standard_normal((2, 6, 4, 3)).astype(np.float32)


@functools.cache
def programs(taps):
    down = jax.jit(functools.partial(downsample, taps=taps, padding=len(taps) // 2 - 1))
    return down, jax.jit(functools.partial(upsample, taps=taps))


def test_box_is_the_mean_of_squares_and_nearest_neighbour():
    down, up = programs((1, 1))
    np.testing.assert_allclose(down(X), X.reshape(2, 3, 2, 2, 2, 3).mean((2, 4)), atol=1e-6)
    np.testing.assert_array_equal(up(X), X.repeat(2, 1).repeat(2, 2))


@FILTERS
def test_up_is_four_times_the_transpose_of_down(taps):
    down, up = programs(taps)
    fine = np.random.default_rng(1).standard_normal((2, 12, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(4 * (down(fine) * X).sum(), (fine * up(X)).sum(), rtol=1e-4)


@FILTERS
@hypothesis.given(value=st.floats(-10, 10, width=32))
def test_constants_stay_inside(taps, value):
    down, up = programs(taps)
    flat = jnp.full(X.shape, value)
    for out in (up(flat)[:, 1:-1, 1:-1], down(up(flat))[:, 1:-1, 1:-1]):
        np.testing.assert_allclose(out, value, rtol=1e-5, atol=1e-6)


def test_fir_of_a_point():
    _, up = programs((1, 3, 3, 1))
    point = np.zeros((1, 4, 4, 1), np.float32)
    point[0, 1, 2, 0] = 1
    expected = np.zeros((8, 8))
    expected[1:5, 3:7] = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16
    np.testing.assert_allclose(up(point)[0, :, :, 0], expected, atol=1e-7)
