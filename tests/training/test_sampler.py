import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusion
from configs import base
from models import Network
from training.components import ConfigError
from training.sampler import build_sampler, sample_labels

MEANS = np.array([-0.5, 0.0, 0.25, 0.8], np.float32)


def make_task(apply, num_classes=3, null_label=3, learned_variance=False):
    return types.SimpleNamespace(
        network=Network(init=lambda key: {"means": jnp.asarray(MEANS)}, apply=apply),
        schedule=diffusion.SCHEDULES["linear"](),
        parameterization=diffusion.PARAMETERIZATIONS["x0"](),
        learned_variance=learned_variance,
        image_shape=(4, 4, 1),
        num_classes=num_classes,
        null_label=null_label,
        split=lambda params: (params, {}),
    )


def constant(params, x, time, condition):
    """The optimal x0-network of data that is one grey value for each class."""
    return jnp.broadcast_to(params["means"][condition["label"]][:, None, None, None], x.shape)


def noisy(params, x, time, condition):
    """A network whose samples depend on all of the noise."""
    shift = constant(params, x, time, condition) if condition else 0.1
    return 0.6 * jnp.tanh(x) + shift * time[:, None, None, None] / 1000


def make_config(**sample):
    config = base.get_config()
    config.sample.update({"steps": 4, "clip": "none", **sample})
    return config


def run(sampler, indices, labels=None, seed=0):
    indices = jnp.asarray(indices)
    labels = jnp.zeros_like(indices) if labels is None else jnp.asarray(labels)
    return np.asarray(sampler({"means": MEANS}, jax.random.key(seed), indices, labels))


@pytest.mark.parametrize("solver", ["ddpm(variance='fixed_small')", "ddim(eta=0.5)"])
def test_each_class_gives_its_own_value(solver):
    sampler = build_sampler(make_config(solver=solver), make_task(constant))
    images = run(sampler, range(6), [0, 1, 2, 2, 1, 0])
    expected = MEANS[[0, 1, 2, 2, 1, 0]][:, None, None, None]
    np.testing.assert_allclose(images, np.broadcast_to(expected, (6, 4, 4, 1)), atol=1e-6)


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_guidance_extrapolates_from_the_null_label(guidance):
    sampler = build_sampler(make_config(guidance=guidance), make_task(constant))
    image = run(sampler, [0], [2])
    expected = MEANS[3] + guidance * (MEANS[2] - MEANS[3])
    np.testing.assert_allclose(image, expected, atol=1e-6)


def test_predictions_are_clipped_after_guidance():
    config = make_config(guidance=10.0, clip="static")
    image = run(build_sampler(config, make_task(constant)), [0], [0])
    np.testing.assert_allclose(image, -1.0, atol=1e-6)


def test_an_image_depends_on_seed_and_index_alone():
    sampler = build_sampler(make_config(), make_task(noisy, num_classes=0, null_label=None))
    images = run(sampler, [0, 1, 2, 3])
    np.testing.assert_array_equal(run(sampler, [3, 7, 1, 7])[[2, 0]], images[[1, 3]])
    assert len(np.unique(images.reshape(4, -1), axis=0)) == 4
    assert (run(sampler, [0, 1, 2, 3], seed=1) != images).any(axis=(1, 2, 3)).all()


def test_guidance_and_plan_change_without_a_new_program():
    task = make_task(noisy)
    two, three = (build_sampler(make_config(guidance=g), task) for g in (2.0, 3.0))
    other = build_sampler(make_config(guidance=3.0, grid="uniform", solver="ddpm"), task)
    program = jax.jit(two.draw)
    arguments = jax.random.key(0), np.arange(2), np.arange(2)
    images = [program({"means": MEANS}, s.inputs({}), *arguments) for s in (two, three, other)]
    assert program._cache_size() == 1
    assert not np.array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[1], run(three, np.arange(2), np.arange(2)))


@pytest.mark.parametrize(("guidance", "calls"), [(1.0, 4), (2.0, 8)])
def test_calls_per_image_are_those_that_happen(guidance, calls):
    seen = []

    def counting(params, x, time, condition):
        seen.append(len(x))
        return constant(params, x, time, condition)

    sampler = build_sampler(make_config(guidance=guidance), make_task(counting))
    with jax.disable_jit():
        run(sampler, range(3))
    assert sampler.calls_per_image == sum(seen) / 3 == calls


def test_what_the_network_cannot_give_is_refused():
    with pytest.raises(ConfigError, match=r"guidance = 2.0: .*null_class"):
        build_sampler(make_config(guidance=2.0), make_task(constant, null_label=None))
    learned = make_config(solver="ddpm(variance='learned_range')")
    with pytest.raises(ConfigError, match=r"learned_range.*no learned variance"):
        build_sampler(learned, make_task(constant))
    with pytest.raises(ConfigError, match=r"config.sample: steps=2000"):
        build_sampler(make_config(steps=2000), make_task(constant))


def test_labels():
    indices = np.array([9, 10, 11, 12])
    np.testing.assert_array_equal(sample_labels("cycle", 10, indices), [9, 0, 1, 2])
    np.testing.assert_array_equal(sample_labels("3", 10, indices), [3, 3, 3, 3])
    np.testing.assert_array_equal(sample_labels("cycle", 0, indices), [0, 0, 0, 0])
    with pytest.raises(ConfigError, match=r"'10': must be 'cycle' or '0' to '9'"):
        sample_labels("10", 10, indices)
    with pytest.raises(ConfigError, match="for a model without classes"):
        sample_labels("0", 0, indices)
