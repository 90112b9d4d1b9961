import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusion
from configs import base
from models import Network
from training import guidance
from training.components import ConfigError, build
from training.sampler import build_sampler, sample_labels

MEANS = np.array([-0.5, 0.0, 0.25, 0.8], np.float32)


def make_task(apply, num_classes=3, null_label=3, learned_variance=False, attention=()):
    return types.SimpleNamespace(
        network=Network(lambda key: {"means": jnp.asarray(MEANS)}, apply, attention),
        schedule=diffusion.SCHEDULES["linear"](),
        parameterization=diffusion.PARAMETERIZATIONS["x0"](),
        learned_variance=learned_variance,
        image_shape=(4, 4, 1),
        num_classes=num_classes,
        null=None if null_label is None else {"label": np.int32(null_label)},
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


def cfg(scale, **more):
    more = "".join(f", {name}={value}" for name, value in more.items())
    return (f"classifier_free(scale={scale}{more})",)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5])
def test_guidance_extrapolates_from_the_null_label(scale):
    sampler = build_sampler(make_config(guidance=cfg(scale)), make_task(constant))
    image = run(sampler, [0], [2])
    expected = MEANS[3] + scale * (MEANS[2] - MEANS[3])
    np.testing.assert_allclose(image, expected, atol=1e-6)


def test_predictions_are_clipped_after_guidance():
    config = make_config(guidance=cfg(10.0), clip="static")
    image = run(build_sampler(config, make_task(constant)), [0], [0])
    np.testing.assert_allclose(image, -1.0, atol=1e-6)


def test_an_image_depends_on_seed_and_index_alone():
    sampler = build_sampler(make_config(), make_task(noisy, num_classes=0, null_label=None))
    images = run(sampler, [0, 1, 2, 3])
    np.testing.assert_array_equal(run(sampler, [3, 7, 1, 7])[[2, 0]], images[[1, 3]])
    assert len(np.unique(images.reshape(4, -1), axis=0)) == 4
    assert (run(sampler, [0, 1, 2, 3], seed=1) != images).any(axis=(1, 2, 3)).all()


def test_numbers_of_guidance_plan_and_seed_change_without_a_new_program():
    traces = []

    def counting(*arguments):
        traces.append(1)
        return noisy(*arguments)

    task = make_task(counting)
    samplers = [
        build_sampler(make_config(**sample), task)
        for sample in (
            {"guidance": cfg(2.0)},
            {"guidance": cfg(3.0)},
            {"guidance": cfg(3.0, interval=(0.5, 5.0), rescale=0.7)},
            {"guidance": ("classifier_free(w=2)",), "grid": "quadratic"},
        )
    ]
    program = jax.jit(samplers[0].draw)
    labels = np.arange(2)
    images = [
        program({"means": MEANS}, s.inputs({}), jax.random.key(seed), np.arange(2), labels)
        for s in samplers
        for seed in (0, 1)
    ]
    assert program._cache_size() == len(traces) == 1
    assert len(np.unique(np.reshape(images, (8, -1)), axis=0)) == 8
    np.testing.assert_array_equal(images[2], run(samplers[1], np.arange(2), labels))
    # The lowered program of the sampling job takes the other numbers too.
    compiled = jax.jit(samplers[0].draw).lower(
        {"means": MEANS}, samplers[0].inputs({}), jax.random.key(0), np.arange(2), labels
    )
    compiled.compile()({"means": MEANS}, samplers[2].inputs({}), jax.random.key(0), labels, labels)


@pytest.mark.parametrize(
    ("guidance", "calls"),
    [((), 4), (cfg(2.0), 8), (("perturbed_attention(scale=1.0, places=(2,))", *cfg(2.0)), 12)],
)
def test_calls_per_image_are_those_that_happen(guidance, calls):
    seen = []

    def counting(params, x, time, condition):
        seen.append(len(x))
        return constant(params, x, time, condition)

    task = make_task(counting, attention=(2, 4))
    sampler = build_sampler(make_config(guidance=guidance), task)
    with jax.disable_jit():
        run(sampler, range(3))
    assert sampler.calls_per_image == sum(seen) / 3 == calls


def companion(params, bind, num_classes=3):
    task = types.SimpleNamespace(num_classes=num_classes)
    return types.SimpleNamespace(task=task, params=params, bind=bind)


def test_parameters_of_another_network_are_arguments():
    """Autoguidance: away from a network that says other values; its values may change."""
    config = make_config(guidance=("autoguidance(scale=3.0, workdir='runs/weak')",))
    task = make_task(constant)

    def bind(params):
        return guidance.denoiser_of(task, params)

    weak, other = (companion({"means": m}, bind) for m in (0.5 * MEANS, 0.25 * MEANS))
    samplers = [build_sampler(config, task, (c,)) for c in (weak, other)]
    assert [s.calls_per_image for s in samplers] == [8, 8]
    program = jax.jit(samplers[0].draw)
    for sampler, share in zip(samplers, (0.5, 0.25), strict=True):
        out = program(
            {"means": MEANS}, sampler.inputs({}), jax.random.key(0), np.arange(2), np.array([0, 2])
        )
        expected = MEANS[[0, 2]] * (share + 3.0 * (1.0 - share))
        np.testing.assert_allclose(out[:, 0, 0, 0], expected, atol=1e-5)
    assert program._cache_size() == 1
    # A preview has no other network.
    np.testing.assert_allclose(run(build_sampler(config, task), [0], [2]), MEANS[2], atol=1e-6)


def test_classifier_gives_an_unconditional_network_its_classes():
    config = make_config(guidance=("classifier(scale=1.0, workdir='runs/c')",))
    task = make_task(noisy, num_classes=0, null_label=None)

    def bind(params):
        # log p grows along the class's own direction, at a rate that sigma does not change.
        return lambda x, level, label: params["slope"][label] * x.sum((1, 2, 3)) / level.sigma**2

    other = companion({"slope": jnp.array([0.0, 0.1, -0.2])}, bind)
    sampler = build_sampler(config, task, (other,))
    assert sampler.num_classes == 3
    assert sampler.calls_per_image == 4
    plain = build_sampler(make_config(), task)
    images = run(sampler, [0, 0, 0], [0, 1, 2])
    np.testing.assert_array_equal(images[0], run(plain, [0])[0])
    assert images[1].mean() > images[0].mean() > images[2].mean()


def refused(message, task=None, companions=(), **sample):
    with pytest.raises(ConfigError, match=message) as caught:
        build_sampler(make_config(**sample), task or make_task(constant), companions)
    assert len(str(caught.value).splitlines()) == 1


def test_what_the_network_cannot_give_is_refused():
    refused(r"learned_range.*no learned variance", solver="ddpm(variance='learned_range')")
    refused(r"config.sample: steps=2000", steps=2000)


def test_guidance_that_does_not_fit_is_refused():
    no_null = make_task(constant, null_label=None)
    refused(r"guidance = 'classifier_free.*null_class = True", no_null, guidance=cfg(2.0))
    build_sampler(make_config(guidance=cfg(2.0, negative=1)), no_null)
    refused(r"negative = 3 must be a label from 0 to 2", no_null, guidance=cfg(2.0, negative=3))
    unconditional = make_task(constant, num_classes=0, null_label=None)
    refused(r"this one knows none; \(\) samples without", unconditional, guidance=cfg(2.0))
    pag = ("perturbed_attention(scale=1.0, places=(8, 2))",)
    refused(r"self-attention at 2, 8; this network has none to replace", guidance=pag)
    there = make_task(constant, attention=(8, 4))
    refused(r"self-attention at 2; the network has it at \(8, 4\)", there, guidance=pag)
    refused(r"guidance = .*rescale=2.0: must be from 0", guidance=cfg(2.0, rescale=2.0))


def test_cfg_plus_plus_needs_ddim_alone_and_its_own_noise():
    plus = ("cfg_plus_plus(scale=0.5)",)
    ddim = {"guidance": plus, "solver": "ddim"}
    build_sampler(make_config(**ddim), make_task(constant))
    refused(r"needs a solver that takes x0 and eps each.*'ddpm", guidance=plus, solver="ddpm")
    refused(r"stands alone", guidance=(*plus, *cfg(2.0)), solver="ddim")
    refused(r"'rederive' would change; take 'raw'", clip="static", **ddim)


def test_classifier_at_pure_noise_is_refused():
    task = make_task(constant)
    task.schedule = build(diffusion.SCHEDULES, "zero_terminal_snr(schedule=linear())", "schedule")
    gradient = ("classifier(scale=1.0, workdir='runs/c')",)
    bind = companion({}, lambda params: None)
    refused(r"no value at pure noise", task, (bind,), guidance=gradient, grid="trailing")


def test_labels():
    indices = np.array([9, 10, 11, 12])
    np.testing.assert_array_equal(sample_labels("cycle", 10, indices), [9, 0, 1, 2])
    np.testing.assert_array_equal(sample_labels("3", 10, indices), [3, 3, 3, 3])
    np.testing.assert_array_equal(sample_labels("cycle", 0, indices), [0, 0, 0, 0])
    with pytest.raises(ConfigError, match=r"'10': must be 'cycle' or '0' to '9'"):
        sample_labels("10", 10, indices)
    with pytest.raises(ConfigError, match="for a model without classes"):
        sample_labels("0", 0, indices)
