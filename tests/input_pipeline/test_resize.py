import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from input_pipeline.resize import METHODS, apply, resize, weights

PIL = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX,
}
X = np.random.default_rng(0).uniform(0, 255, (2, 32, 48, 1)).astype(np.float32)


def pil(image, size, method):
    return np.asarray(Image.fromarray(image[..., 0]).resize(size[::-1], PIL[method]))


@pytest.mark.parametrize("size", [(16, 16), (11, 20), (40, 64)])
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_as_pil(method, size):
    ours = np.asarray(resize(jnp.asarray(X), size, method))
    for image, result in zip(X, ours, strict=True):
        np.testing.assert_allclose(result[..., 0], pil(image, size, method), atol=2e-3)


def test_area_by_whole_factors_is_pils_box():
    ours = np.asarray(resize(jnp.asarray(X), (16, 12), "area"))
    np.testing.assert_allclose(ours[0, ..., 0], pil(X[0], (16, 12), "area"), atol=2e-3)


@pytest.mark.parametrize("size", [(13, 48), (40, 31)])
def test_area_is_the_mean_over_what_a_pixel_covers(size):
    """An image of 1 px cells, made finer until both pixel grids fit: plain means."""
    exact = X.repeat(size[0], 1).repeat(size[1], 2)
    exact = exact.reshape(2, size[0], 32, size[1], 48, 1).mean((2, 4))
    ours = np.asarray(resize(jnp.asarray(X), size, "area"))
    np.testing.assert_allclose(ours, exact, atol=2e-3)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_as_jax(method):
    kind = {"bilinear": "linear", "bicubic": "cubic"}[method]
    theirs = jax.image.resize(jnp.asarray(X), (2, 10, 60, 1), kind, antialias=True)
    ours = resize(jnp.asarray(X), (10, 60), method)
    np.testing.assert_allclose(ours, theirs, atol=0.05)


@pytest.mark.parametrize("method", range(4), ids=METHODS)
def test_a_size_that_is_traced_is_that_size(method):
    """Of an array of 32 the first 20 are resized to 12, and the last of these is repeated."""
    traced = jax.jit(lambda a, b: weights(method, a, b, 32, 32, 1.3))(20, 12)
    known = weights(method, 20, 12, 20, 12, 1.3)
    np.testing.assert_allclose(traced[:12, :20], known, atol=1e-6)
    np.testing.assert_array_equal(traced[:, 20:], 0)
    np.testing.assert_allclose(traced[12:, :20], np.tile(known[-1], (20, 1)), atol=1e-6)
    np.testing.assert_allclose(traced.sum(1), 1, atol=1e-6)


def test_each_image_has_its_own_matrix():
    matrices = jnp.stack([weights(0, 32, size, 32, 16) for size in (16, 8)])
    columns = jnp.stack([weights(0, 48, size, 48, 24) for size in (24, 12)])
    both = apply(jnp.asarray(X), matrices, columns)
    np.testing.assert_allclose(
        both[0], resize(jnp.asarray(X[:1]), (16, 24), "bilinear")[0], atol=1e-3
    )
    np.testing.assert_allclose(
        both[1, :8, :12], resize(jnp.asarray(X[1:]), (8, 12), "bilinear")[0], atol=1e-3
    )


def test_other_methods_are_refused():
    with pytest.raises(ValueError, match="'lanczos' is none of 'bilinear', 'bicubic', 'area'"):
        resize(jnp.asarray(X), (8, 8), "lanczos")
