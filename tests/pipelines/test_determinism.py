"""Sample i is a function of the seed and i: not of its batch, its row or the number of devices."""

import jax
import numpy as np
import pytest

from configs import digits
from training.config import freeze
from training.mesh import batch_sharding, make_mesh, replicated
from training.sampler import build_sampler
from training.tasks.diffusion import DiffusionTask

ROWS = 16


@pytest.fixture(scope="module")
def model():
    config = digits.get_config("smoke")
    config.model.update(channels=32, attention_resolutions=(4,))
    # Noise in every step, guidance, clipping: all that could mix rows.
    config.sample.update(solver="ddpm(variance='fixed_large')", steps=4)
    config.sample.guidance = ("classifier_free(scale=2.0)",)
    task = DiffusionTask(freeze(config))
    params = jax.jit(task.init)(jax.random.key(0))
    # The output layer starts at zero: without this every sample would be its own noise.
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda p: p + np.float32(0.05 * rng.standard_normal(p.shape)), jax.device_get(params)
    )
    return build_sampler(config, task), params


def draw(model, indices, devices=1):
    sampler, params = model
    mesh = make_mesh(devices=jax.devices()[:devices])
    indices = np.asarray(indices, np.int32)
    rows = jax.device_put((indices, indices % 10), batch_sharding(mesh))
    # As the sampler, without YNNPACK, whose sums on some processors depend on the rows at hand.
    program = jax.jit(sampler.draw, compiler_options={"xla_cpu_experimental_ynn_fusion_type": ""})
    placed = jax.device_put(params, replicated(mesh))
    return np.asarray(program(placed, sampler.inputs(params), jax.random.key(7), *rows))


@pytest.fixture(scope="module")
def together(model):
    return draw(model, range(ROWS))


@pytest.mark.parametrize("batch", [1, 7, 16])
def test_batches_of_any_size_give_the_same_bits(model, together, batch):
    """In the same program: what does not fill it is padded with other samples."""
    for start in range(0, ROWS, batch):
        wanted = list(range(start, min(start + batch, ROWS)))
        padding = [1000 + i for i in range(ROWS - len(wanted))]
        images = draw(model, wanted + padding)
        np.testing.assert_array_equal(images[: len(wanted)], together[wanted])


def test_row_does_not_matter(model, together):
    order = np.random.default_rng(0).permutation(ROWS)
    np.testing.assert_array_equal(draw(model, order), together[order])


@pytest.mark.parametrize("devices", [2, 8])
def test_device_count(model, together, devices):
    np.testing.assert_allclose(draw(model, range(ROWS), devices), together, atol=1e-5)


def test_seed_and_index_matter(model, together):
    assert len(np.unique(together.reshape(ROWS, -1), axis=0)) == ROWS
    assert np.abs(draw(model, range(100, 100 + ROWS)) - together).mean() > 0.01
