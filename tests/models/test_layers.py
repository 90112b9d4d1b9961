import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from models.convolution import Conv
from models.functional import functional
from models.layers import GroupNorm, Linear, downsample, dropout, upsample


def group_norm64(x, groups, eps):
    x = np.asarray(x, np.float64)
    grouped = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean, var = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    return ((grouped - mean) / np.sqrt(var + eps)).reshape(x.shape)


@jax.jit
def group_norm(*arrays):
    return GroupNorm(8, 4, 1e-6)(*arrays)


@settings(max_examples=20, deadline=None)
@given(mean=st.sampled_from([0.0, 1.0, 100.0, 1e4]), seed=st.integers(0, 2**16))
def test_group_norm_where_the_mean_dwarfs_the_deviation(mean, seed):
    x = mean + np.random.default_rng(seed).standard_normal((2, 4, 4, 8)).astype(np.float32)
    x = jnp.asarray(x, jnp.float32)
    # What is left is the rounding of x - mean(x): half a unit in the last place of `mean`.
    tolerance = 1e-5 + 4 * float(np.spacing(np.float32(mean)))
    np.testing.assert_allclose(group_norm(x), group_norm64(x, 4, 1e-6), atol=tolerance)


def test_group_norm_gradient():
    keys = jax.random.split(jax.random.key(0), 3)
    x = 3 + jax.random.normal(keys[0], (2, 3, 3, 8))
    scale, shift = jax.random.normal(keys[1], (2, 2, 8))

    def value(*arrays):
        return jnp.sin(group_norm(*map(jnp.asarray, arrays))).sum()

    check_grads(value, (x, scale, shift), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


def test_group_norm_film():
    network = functional(lambda rngs: GroupNorm(8, 2, 1e-5))
    norm = jax.jit(
        functools.partial(network.apply, {"scale": jnp.arange(8.0), "bias": jnp.ones(8)})
    )
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (3, 2, 2, 8))
    scale, shift = jax.random.normal(keys[1], (2, 3, 8))
    expected = norm(x) * (1 + scale[:, None, None]) + shift[:, None, None]
    np.testing.assert_allclose(norm(x, scale, shift), expected, atol=1e-5)


def test_group_norm_in_bfloat16_has_float32_statistics():
    x = (30 + jax.random.normal(jax.random.key(0), (2, 8, 8, 8))).astype(jnp.bfloat16)
    output = group_norm(x)
    assert output.dtype == jnp.bfloat16
    np.testing.assert_allclose(output.astype(jnp.float32), group_norm64(x, 4, 1e-6), atol=0.02)


def initialized(layer, *arguments, **settings):
    build = functional(lambda rngs: layer(*arguments, dtype="float32", **settings))
    params = build.init(jax.random.key(0))
    return np.asarray(params["kernel"]), np.asarray(params["bias"])


@pytest.mark.parametrize(("layer", "area"), [(Conv, 9), (Linear, 1)])
@pytest.mark.parametrize("init", ["ddpm", "torch"])
def test_initial_distribution(layer, area, init):
    kernel, bias = initialized(layer, 48, 96, init=init)
    # Uniform within the bound: DDPM's variance is 1 / fan_avg; PyTorch's bound is 1 / sqrt(fan_in).
    bound = (area * 48) ** -0.5 if init == "torch" else (3 / (area * 72)) ** 0.5
    assert 0.98 * bound < np.abs(kernel).max() <= bound
    assert abs(kernel.mean()) < 0.03 * bound
    np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.03)
    if init == "torch":
        assert 0.9 * bound < np.abs(bias).max() <= bound
    else:
        assert not bias.any()


def test_parts_have_the_fan_out_of_separate_layers():
    fused, _ = initialized(Linear, 64, 192, init="ddpm", parts=3)
    single, _ = initialized(Linear, 64, 64, init="ddpm")
    np.testing.assert_allclose(fused.std(), single.std(), rtol=0.03)
    np.testing.assert_allclose(np.abs(fused).max(), np.abs(single).max(), rtol=0.01)


@pytest.mark.parametrize("layer", [Conv, Linear])
def test_zero_layers_are_exactly_zero(layer):
    kernel, bias = initialized(layer, 4, 8, init="torch", zero=True)
    assert not kernel.any()
    assert not bias.any()


def test_unknown_init():
    with pytest.raises(ValueError, match="'ddpm' and 'torch'"):
        Linear(4, 4, init="xavier", dtype="float32")


def test_upsample_repeats_and_downsample_averages():
    x = jnp.arange(24.0).reshape(1, 2, 3, 4)
    up = upsample(x)
    np.testing.assert_array_equal(up, np.asarray(x).repeat(2, 1).repeat(2, 2))
    np.testing.assert_array_equal(downsample(up), x)
    square = jnp.array([[0.0, 1.0], [2.0, 9.0]]).reshape(1, 2, 2, 1)
    assert downsample(square).item() == 3


def test_dropout():
    x = jnp.ones((64, 64))
    assert dropout(x, 0.25, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x
    y = np.asarray(dropout(x, 0.25, jax.random.key(0)))
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 0.02
