import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from models.layers import GroupNorm, conv, downsample, dropout, linear, upsample


def group_norm64(x, groups, eps):
    x = np.asarray(x, np.float64)
    grouped = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean, var = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    return ((grouped - mean) / np.sqrt(var + eps)).reshape(x.shape)


@settings(max_examples=20, deadline=None)
@given(mean=st.sampled_from([0.0, 1.0, 100.0, 1e4]), seed=st.integers(0, 2**16))
def test_group_norm_where_the_mean_dwarfs_the_deviation(mean, seed):
    x = mean + jax.random.normal(jax.random.key(seed), (2, 4, 4, 8))
    norm = GroupNorm(8, 4, 1e-6, rngs=nnx.Rngs(0))
    # What is left is the rounding of x - mean(x): half a unit in the last place of `mean`.
    tolerance = 1e-5 + 4 * float(np.spacing(np.float32(mean)))
    np.testing.assert_allclose(norm(x), group_norm64(x, 4, 1e-6), atol=tolerance)


def test_group_norm_gradient():
    norm = GroupNorm(8, 4, 1e-6, rngs=nnx.Rngs(0))
    keys = jax.random.split(jax.random.key(0), 3)
    x = 3 + jax.random.normal(keys[0], (2, 3, 3, 8))
    scale, shift = jax.random.normal(keys[1], (2, 2, 8))

    def value(x, scale, shift):
        return jnp.sin(norm(x, scale, shift)).sum()

    check_grads(value, (x, scale, shift), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


def test_group_norm_film():
    norm = GroupNorm(8, 2, 1e-5, rngs=nnx.Rngs(0))
    norm.scale[...], norm.bias[...] = jnp.arange(8.0), jnp.ones(8)
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (3, 2, 2, 8))
    scale, shift = jax.random.normal(keys[1], (2, 3, 8))
    expected = norm(x) * (1 + scale[:, None, None]) + shift[:, None, None]
    np.testing.assert_allclose(norm(x, scale, shift), expected, atol=1e-5)


def test_group_norm_in_bfloat16_has_float32_statistics():
    x = (30 + jax.random.normal(jax.random.key(0), (2, 8, 8, 8))).astype(jnp.bfloat16)
    output = GroupNorm(8, 4, 1e-6, rngs=nnx.Rngs(0))(x)
    assert output.dtype == jnp.bfloat16
    np.testing.assert_allclose(output.astype(jnp.float32), group_norm64(x, 4, 1e-6), atol=0.02)


@pytest.mark.parametrize("kind", ["conv", "linear"])
@pytest.mark.parametrize("init", ["ddpm", "torch"])
def test_initial_distribution(kind, init):
    inputs, outputs, area = 48, 96, 9 if kind == "conv" else 1
    layer = {"conv": conv, "linear": linear}[kind](
        inputs, outputs, init=init, dtype="float32", rngs=nnx.Rngs(0)
    )
    kernel, bias = np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])
    # Uniform within the bound: DDPM's variance is 1 / fan_avg; PyTorch's bound is 1 / sqrt(fan_in).
    bound = (area * inputs) ** -0.5 if init == "torch" else (3 / (area * 72)) ** 0.5
    assert 0.98 * bound < np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.03)
    if init == "torch":
        assert 0.9 * bound < np.abs(bias).max() <= bound
    else:
        assert not bias.any()


def test_parts_are_drawn_like_separate_layers():
    settings = {"init": "ddpm", "dtype": "float32"}
    fused = np.asarray(linear(64, 192, parts=3, rngs=nnx.Rngs(0), **settings).kernel[...])
    single = np.asarray(linear(64, 64, rngs=nnx.Rngs(1), **settings).kernel[...])
    parts = np.split(fused, 3, axis=1)
    for part in parts:
        np.testing.assert_allclose(part.std(), single.std(), rtol=0.05)
    assert abs(np.corrcoef(parts[0].ravel(), parts[1].ravel())[0, 1]) < 0.05


def test_zero_layers_are_exactly_zero():
    for make in (conv, linear):
        layer = make(4, 8, init="torch", dtype="float32", zero=True, rngs=nnx.Rngs(0))
        assert not layer.kernel[...].any()
        assert not layer.bias[...].any()


def test_unknown_init():
    with pytest.raises(ValueError, match="'ddpm' and 'torch'"):
        linear(4, 4, init="xavier", dtype="float32", rngs=nnx.Rngs(0))


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
