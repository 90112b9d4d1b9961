import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.functional import functional
from models.magnitude_preserving import (
    MPConv,
    MPEmbedding,
    MPFourier,
    mp_cat,
    mp_silu,
    mp_sum,
    normalized,
    normalized_kernel,
    normalized_kernels,
)


def rms(x):
    return float(np.sqrt(np.square(np.asarray(x, np.float64)).mean()))


def noise(seed, shape):
    return jax.random.normal(jax.random.key(seed), shape)


@given(st.floats(-6, 6), st.sampled_from([1, 2, 40]))
def test_normalized_divides_by_magnitude_and_eps(log_scale, channels):
    x = 10.0**log_scale * noise(channels, (7, channels))
    exact = np.asarray(x, np.float64)
    expected = exact / (1e-4 + np.sqrt(np.square(exact).mean(-1, keepdims=True)))
    np.testing.assert_allclose(normalized(x, -1), expected, rtol=1e-5)


def test_normalized_kernel_is_by_output_channel():
    kernel = noise(0, (3, 3, 5, 4)) * jnp.array([0.01, 1.0, 5.0, 100.0])
    magnitude = np.sqrt(np.square(normalized_kernel(kernel)).mean((0, 1, 2)))
    before = np.sqrt(np.square(kernel).mean((0, 1, 2)))
    np.testing.assert_allclose(magnitude, before / (before + 1e-4), rtol=1e-6)


def test_normalized_zero_has_a_finite_gradient():
    x = jnp.ones((2, 3)).at[0].set(0)
    value, gradient = jax.value_and_grad(lambda x: normalized(x, -1).sum())(x)
    assert value == pytest.approx(3, rel=1e-3)
    # d/dx of x / eps, the magnitude being taken as constant.
    np.testing.assert_allclose(gradient[0], 1e4, rtol=1e-6)
    assert np.isfinite(gradient).all()


def test_normalized_bfloat16_has_float32_statistics():
    x = noise(0, (4, 4096)).astype(jnp.bfloat16)
    assert normalized(x, -1).dtype == jnp.bfloat16
    assert rms(normalized(x, -1).astype(jnp.float32)) == pytest.approx(1, abs=2e-3)


def test_only_kernels_are_normalized():
    params = {
        "a": {"kernel": 3 * noise(0, (8, 4)), "scale": 3 * noise(1, (8, 4))},
        "kernel": jnp.full(4, 3.0),
        "frequencies": jnp.full(4, 3.0),
    }
    new = normalized_kernels(params)
    assert rms(new["a"]["kernel"]) == pytest.approx(1, rel=1e-3)
    new["a"]["kernel"] = params["a"]["kernel"]
    jax.tree.map(np.testing.assert_array_equal, new, params)


BALANCES = st.floats(0, 1)


@given(BALANCES)
def test_sum_and_silu_keep_the_magnitude(balance):
    a, b = noise(1, (400, 500)), noise(2, (400, 500))
    assert rms(mp_sum(a, b, balance)) == pytest.approx(1, abs=0.01)
    assert rms(mp_silu(a)) == pytest.approx(1, abs=0.01)
    np.testing.assert_array_equal(mp_sum(a, b, 0.0), a)
    np.testing.assert_array_equal(mp_sum(a, b, 1.0), b)


@given(BALANCES, st.sampled_from([1, 48]), st.sampled_from([3, 48]))
def test_cat_keeps_the_magnitude_and_gives_the_shares(balance, size_a, size_b):
    a, b = jnp.ones((2, size_a)), jnp.ones((2, size_b))
    out = mp_cat(a, b, balance)
    assert rms(out) == pytest.approx(1, rel=1e-5)
    share = np.square(out[0, size_a:]).sum() / np.square(out[0]).sum()
    expected = balance**2 / (balance**2 + (1 - balance) ** 2)
    assert share == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("window", [(), (3, 3)])
def test_conv_keeps_the_magnitude_whatever_the_size_of_its_weights(window):
    layer = functional(lambda rngs: MPConv(32, 64, window=window, dtype="float32"))
    params = layer.init(jax.random.key(0))
    assert params["kernel"].shape == (*window, 32, 64)
    assert rms(params["kernel"]) == pytest.approx(1, abs=0.05)
    x = noise(1, (2, 32, 32, 32))
    out = layer.apply(params, x)
    # The rows and columns of zeros around the image take a little.
    assert rms(out[:, 1:-1, 1:-1]) == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(layer.apply(params, x, jnp.array(0.5)), 0.5 * out, atol=1e-5)
    larger = {"kernel": params["kernel"] * jnp.logspace(0, 3, 64)}
    np.testing.assert_allclose(layer.apply(larger, x), out, rtol=1e-3, atol=1e-4)
    forced = layer.apply(normalized_kernels(params), x)
    np.testing.assert_allclose(forced, out, atol=2e-4)


def test_fourier_keeps_the_magnitude_and_is_not_trained():
    layer = functional(lambda rngs: MPFourier(2048))
    params = layer.init(jax.random.key(0))
    assert rms(params["frequencies"]) == pytest.approx(2 * math.pi, rel=0.05)
    assert np.abs(params["phases"]).max() == pytest.approx(math.pi, rel=0.01)
    time = jnp.array([-1.5, 0.0, 2.0])
    np.testing.assert_allclose(
        layer.apply(params, time),
        2**0.5 * np.cos(np.outer(time, params["frequencies"]) + params["phases"]),
        atol=1e-5,
    )
    assert rms(layer.apply(params, time)) == pytest.approx(1, abs=0.05)
    gradient = jax.grad(lambda params: jnp.square(layer.apply(params, time)).sum())(params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))


def test_embedding_is_a_dense_layer_of_one_hot_labels():
    layer = functional(lambda rngs: MPEmbedding(5, 8, null=True))
    dense = functional(lambda rngs: MPConv(5, 8, dtype="float32"))
    params = layer.init(jax.random.key(0))
    one_hot = jnp.eye(6)[:, :5] * 5**0.5
    out = layer.apply(params, jnp.arange(7))
    np.testing.assert_allclose(out[:6], dense.apply(params, one_hot), atol=1e-6)
    assert not out[5].any()
    assert jnp.isnan(out[6]).all()
    without_null = functional(lambda rngs: MPEmbedding(5, 8, null=False))
    assert jnp.isnan(without_null.apply(params, jnp.array([5]))).all()
