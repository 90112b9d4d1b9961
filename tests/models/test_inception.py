"""Parts of Inception by their definitions; the whole is compared with other programs' outputs in
tests/evaluation/extractors/test_inception.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import inception
from models.functional import count_parameters
from models.inception import BatchNorm, make_inception

X = np.random.RandomState(0).standard_normal((2, 6, 5, 3)).astype("f")


def windows(x, padding):
    """[2, rows, columns, 3, 9]: the neighbours of each pixel, the middle one fifth."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=padding)
    rows, columns = x.shape[1:3]
    shifts = [padded[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    return np.stack(shifts, -1)


def test_averages_are_over_pixels_that_are_there():
    expected = np.nanmean(windows(X, np.nan), -1)
    np.testing.assert_allclose(inception._average(jnp.asarray(X)), expected, atol=1e-6)


def test_maxima():
    every = windows(X, -np.inf).max(-1)
    np.testing.assert_array_equal(inception._maximum(jnp.asarray(X)), every)
    # With a stride of two only windows that are whole: those around odd pixels.
    np.testing.assert_array_equal(inception._maximum(jnp.asarray(X), 2), every[:, 1:-1:2, 1:-1:2])


def test_batch_norm():
    norm = BatchNorm(3)
    values = np.random.RandomState(1).uniform(0.5, 2, (4, 3))
    norm.scale[...], norm.bias[...], norm.mean[...], norm.variance[...] = jnp.float32(values)
    scale, bias, mean, variance = values
    expected = (X - mean) / np.sqrt(variance + 1e-3) * scale + bias
    np.testing.assert_allclose(norm(jnp.asarray(X)), expected, atol=1e-5)


def test_shapes():
    network = make_inception()
    params = jax.eval_shape(network.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, 299, 299, 3), jnp.float32)
    shapes = [out.shape for out in jax.eval_shape(network.apply, params, images)]
    assert shapes == [(2, 2048), (2, 2023), (2, 1008)]
    # What is trained, without the bias of the logits: two of four numbers of a norm's channel.
    norms = sum(x.size for path, x in jax.tree.leaves_with_path(params) if path[-1].key == "mean")
    assert count_parameters(params) - 2 * norms == 23_850_960 - 1008
    with pytest.raises(TypeError, match=r"shape|Shape|type"):
        jax.eval_shape(network.apply, params, jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32))
