"""Running an extractor: batches that are not full, and the same features on any devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evaluation.extractors.base import Extractor, Runner, exact
from training.components import ConfigError
from training.mesh import make_mesh

IMAGES = np.random.RandomState(0).randint(0, 256, (11, 6, 6, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def extractor():
    """Two outputs of a random layer."""
    kernel = np.random.RandomState(1).standard_normal((108, 40)).astype("f")
    traced = []

    def apply(params, images):
        traced.append(images.shape)
        x = jnp.tanh(images.reshape(len(images), -1) @ params["kernel"] / 2000)
        return {"wide": x, "narrow": x[:, :3]}

    return Extractor("test", {"wide": 40, "narrow": 3}, {"of": traced}, {"kernel": kernel}, apply)


def expected():
    kernel = np.random.RandomState(1).standard_normal((108, 40)).astype("f")
    return np.tanh(IMAGES.reshape(11, -1) @ np.float64(kernel) / 2000)


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 4), (2, 3), (8, 4), (1, 11)])
def test_batches(extractor, devices, batch_size):
    mesh = make_mesh(devices=jax.devices()[:devices])
    out = Runner(extractor, mesh, batch_size)(IMAGES)
    assert {k: (v.shape, v.dtype) for k, v in out.items()} == {
        "wide": ((11, 40), np.float32),
        "narrow": ((11, 3), np.float32),
    }
    np.testing.assert_allclose(out["wide"], expected(), atol=1e-5)
    np.testing.assert_array_equal(out["narrow"], out["wide"][:, :3])


def test_one_program_for_any_number_of_images(extractor):
    extractor.identity["of"].clear()
    run = Runner(extractor, make_mesh(devices=jax.devices()[:2]), batch_size=2)
    for count in (0, 1, 4, 11):
        out = run(IMAGES[:count])
        assert len(out["wide"]) == count
        np.testing.assert_allclose(out["wide"], expected()[:count], atol=1e-5)
    assert extractor.identity["of"] == [(4, 6, 6, 3)]


def test_products_are_in_full_precision():
    def apply(params, images):
        return {"x": images @ params}

    program = jax.jit(exact(apply)).lower(np.ones((3, 2), "f"), np.ones((2, 3), "f")).as_text()
    assert "HIGHEST" in program
    assert (
        "HIGHEST" not in jax.jit(apply).lower(np.ones((3, 2), "f"), np.ones((2, 3), "f")).as_text()
    )


def test_a_batch_of_none_is_refused(extractor):
    with pytest.raises(ConfigError, match="batch_size=0: must be positive"):
        Runner(extractor, batch_size=0)
