import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusion
from configs import base
from training import tasks
from training.config import freeze, validate
from training.tasks.diffusion import OBJECTIVE

KEY = jax.random.key(0)


def make_task(**sections):
    config = base.get_config()
    config.data.update(image_size=8, channels=1)
    config.model.update(
        channels=8,
        channel_mult=(1,),
        num_res_blocks=1,
        attention_resolutions=(),
        norm_groups=4,
        dropout=0.0,
    )
    for name, fields in sections.items():
        config[name].update(fields)
    validate(config)
    return tasks.TASKS["diffusion"](freeze(config))


def images(batch=4):
    return {"image": np.random.default_rng(0).integers(0, 256, (batch, 8, 8, 1), np.uint8)}


def test_is_a_task():
    assert isinstance(make_task(), tasks.Task)


def test_without_learned_parts_parameters_are_the_networks_and_the_state_is_empty():
    task = make_task()
    params = jax.eval_shape(task.init, KEY)
    assert jax.tree.structure(params) == jax.tree.structure(jax.eval_shape(task.network.init, KEY))
    assert task.split(params) == (params, {})
    assert task.init_state() == {}


def test_uncertainty_is_trained_with_the_network():
    task = make_task(diffusion={"uncertainty_channels": 16})
    params = jax.jit(task.init)(KEY)
    assert params[OBJECTIVE]["uncertainty"]["kernel"].shape == (16, 1)

    def loss(params):
        return task.loss(params, {}, images(), KEY)[0]

    slopes = jax.jit(jax.grad(loss))(params)[OBJECTIVE]["uncertainty"]
    assert np.any(slopes["kernel"] != 0)
    assert np.all(slopes["frequencies"] == 0)
    assert np.all(slopes["phases"] == 0)


def test_importance_sampler_remembers_the_batch():
    task = make_task(diffusion={"time_sampler": "loss_second_moment(history=2)"})
    params, state = jax.jit(task.init)(KEY), task.init_state()
    _, (_, after) = jax.jit(task.loss)(params, state, images(), KEY)
    assert int(after["seen"].sum()) == 4
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


def test_latents_are_scaled_and_not_brought_to_pixels_range():
    task = make_task(data={"field": "latent", "scale": 0.5, "channels": 4})
    spec = task.batch_spec(2)
    assert spec["latent"].shape == (2, 8, 8, 4)
    assert spec["latent"].dtype == jnp.float32
    seen = {}

    class Objective:
        def __call__(self, network, x0, *rest):
            seen["x0"] = x0
            zeros = jnp.zeros(len(x0))
            return diffusion.objective.Loss(zeros, {}, {})

    task.objective = Objective()
    latents = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)
    task.loss({}, {}, {"latent": latents}, KEY)
    np.testing.assert_allclose(seen["x0"], 0.5 * latents)


@pytest.mark.parametrize("channels", [2, 4])
def test_images_have_one_or_three_channels(channels):
    with pytest.raises(ValueError, match=f"channels = {channels}: must be 1 or 3 for images"):
        make_task(data={"channels": channels})
