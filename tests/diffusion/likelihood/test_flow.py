"""The flow of Gaussian data is affine, so its density is known; all else here follows from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import Prediction, denoiser
from diffusion.likelihood import ODE
from diffusion.likelihood.flow import vector_field
from diffusion.parameterization import X0, V
from diffusion.pixels import dequantization_bits, dequantize
from diffusion.schedules import (
    cosine,
    edm,
    linear,
    rectified_flow,
    sub_vp,
    vdm,
    vdm_network,
    ve,
    vp,
    zero_terminal_snr,
)

SHAPE = (2, 2, 1)
# Of each dimension: a flow that is not the same everywhere.
MEAN = np.linspace(-0.5, 0.6, 4).reshape(SHAPE)
VARIANCE = np.array([0.3, 0.1, 1.7, 0.02]).reshape(SHAPE)
SCHEDULES = {
    "linear": linear(),
    "cosine": cosine(timesteps=400),
    "zero_terminal": zero_terminal_snr(linear()),
    "vp": vp(),
    "sub_vp": sub_vp(),
    "ve": ve(),
    "edm": edm(),
    "flow": rectified_flow(margin=1e-4),
    "vdm": vdm(),
    "vdm_network": vdm_network(features=8),
}
X = jnp.asarray(MEAN + np.random.default_rng(0).standard_normal((3, *SHAPE)) * VARIANCE**0.5)


def exact(x, level, condition):
    """The denoiser of N(MEAN, VARIANCE)."""
    level = level.like(x)
    total = level.alpha**2 * VARIANCE + level.sigma**2
    rest = x - level.alpha * MEAN
    return Prediction(MEAN + level.alpha * VARIANCE / total * rest, level.sigma / total * rest)


def log_density(x, schedule):
    """log p per dimension of what the flow makes of the prior, at the schedule's least noise."""
    logsnr = np.maximum(schedule.logsnr(np.float64(schedule.t_range[1])), -20.0)
    first = schedule.level(np.float64(schedule.t_range[0]))
    noise = np.exp(-first.logsnr)
    # z of unit scaling: mean a m, variance a^2 v + s^2; the flow keeps (z - mean) / deviation.
    a, s2 = np.sqrt(1 / (1 + np.exp(-logsnr))), 1 / (1 + np.exp(logsnr))
    stretch = np.sqrt((a**2 * VARIANCE + s2) / (VARIANCE + noise))
    z = a * MEAN + stretch * (np.asarray(x) - MEAN)
    log_p = -0.5 * z**2 - 0.5 * np.log(2 * np.pi) + np.log(stretch)
    return log_p.reshape(len(x), -1).mean(1)


def measure(method, schedule, x=X, denoise=exact, seed=0):
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(len(x)))
    plan = method.plan(schedule, False)

    @jax.jit
    def run(plan, x, keys):
        return method(denoise, schedule, plan, x, None, keys)

    return run(plan, jnp.asarray(x, jnp.float32), keys)


def nats(result):
    return -sum(np.asarray(part) for part in result.parts.values()) * np.log(2.0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_density_of_gaussian_data(name):
    """Rademacher probes are exact here, where the Jacobian is diagonal."""
    schedule = SCHEDULES[name]
    method = ODE(solver="rk4", steps=200, dequantization="none")
    np.testing.assert_allclose(
        nats(measure(method, schedule)), log_density(X, schedule), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("name", ["linear", "flow", "vdm_network"])
def test_density_by_adaptive_steps(name):
    schedule = SCHEDULES[name]
    result = measure(ODE(tolerance=1e-6, dequantization="none"), schedule)
    np.testing.assert_allclose(nats(result), log_density(X, schedule), rtol=0, atol=1e-4)
    assert np.all((result.counts["steps"] > 5) & (result.counts["steps"] < 400))


@pytest.mark.parametrize(
    ("solver", "order", "steps"), [("heun", 2, (32, 64, 128)), ("rk4", 4, (10, 20, 40))]
)
@pytest.mark.parametrize("spacing", ["logsnr", "t"])
def test_order_of_convergence(solver, order, steps, spacing):
    errors, schedule = [], SCHEDULES["edm" if spacing == "t" else "vdm"]
    for count in steps:
        method = ODE(solver=solver, steps=count, spacing=spacing, dequantization="none")
        errors.append(np.abs(nats(measure(method, schedule)) - log_density(X, schedule)).max())
    np.testing.assert_allclose(np.log2(np.divide(errors[:-1], errors[1:])), order, atol=0.6)


def test_an_image_gets_the_same_number_in_any_batch():
    """Each has its own steps: alone, and beside one that is far off and takes more of them."""
    method, schedule = ODE(dequantization="centered"), SCHEDULES["linear"]
    together = measure(method, schedule, np.concatenate([X[:1], 30.0 * X[:1]]))
    alone = measure(method, schedule, X[:1])
    steps = np.asarray(together.counts["steps"])
    assert steps[0] != steps[1]
    assert alone.counts["steps"][0] == steps[0]
    assert nats(alone)[0] == pytest.approx(nats(together)[0], abs=1e-6)


def test_too_few_steps_are_not_a_number():
    result = measure(ODE(max_steps=3), SCHEDULES["linear"])
    assert np.all(np.isnan(nats(result)))


# --- the divergence

MATRIX = np.random.default_rng(1).standard_normal((4, 4))


def mixing(x, level, condition):
    """A linear x0 whose Jacobian is full."""
    level = level.like(x)
    x0 = (x.reshape(len(x), -1) @ MATRIX).reshape(x.shape)
    return Prediction(x0, (x - level.alpha * x0) / level.sigma)


def divergence(probes):
    schedule = SCHEDULES["linear"]
    field = vector_field(mixing, None, jnp.asarray(probes))
    return float(field(schedule.level(jnp.asarray(300)), jnp.float32(X[0]))[1])


def trace():
    level = SCHEDULES["linear"].level(np.array(300.0))
    # d/dz of -(a s / 2) (a (z - a M z) / s - s M z) = -a / 2 (a - M).
    return np.trace(-0.5 * level.alpha * (level.alpha * np.eye(4) - MATRIX)) / 4


def test_exact_divergence_is_the_trace():
    method = ODE(divergence="exact")
    probes = method._probes(jax.random.key(0), jnp.float32(X[0]))
    assert divergence(probes) == pytest.approx(trace(), rel=1e-5)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased(distribution):
    """The mean over many probes is within 4 standard errors of the trace, and a few are not."""
    method = ODE(divergence=distribution, probes=20_000)
    probes = method._probes(jax.random.key(2), jnp.float32(X[0]))
    assert np.mean(np.square(probes)) == pytest.approx(1.0, abs=0.03)
    estimate = divergence(probes)
    jacobian = np.einsum("ki,kj->kij", *[np.asarray(probes).reshape(-1, 4)] * 2)
    level = SCHEDULES["linear"].level(np.array(300.0))
    full = -0.5 * level.alpha * (level.alpha * np.eye(4) - MATRIX.T)
    spread = np.einsum("kij,ij->k", jacobian, full).std() / 4
    assert spread > 0.02
    assert estimate == pytest.approx(trace(), abs=4 * spread / np.sqrt(20_000))
    assert abs(divergence(probes[:2]) - trace()) > 4 * spread / np.sqrt(20_000)


def test_probes_are_drawn_by_the_images_own_key():
    method = ODE(solver="rk4", steps=8, dequantization="none")
    same = np.repeat(X[:1], 2, axis=0)
    two = nats(measure(method, SCHEDULES["linear"], same, mixing))
    assert two[0] != two[1]


# --- networks and data


def test_a_network_is_told_level_and_label():
    schedule = SCHEDULES["cosine"]

    def network(x, time, condition):
        assert x.shape == (1, *SHAPE)
        assert time.shape == (1,)
        return 0.1 * condition["label"][:, None, None, None] * x + 1e-4 * time[:, None, None, None]

    method = ODE(solver="heun", steps=10, dequantization="none")
    keys, labels = jax.random.split(jax.random.key(0), 3), jnp.arange(3)
    for parameterization in (V(), X0()):
        denoise = denoiser(network, schedule, parameterization)
        plan = method.plan(schedule, False)
        x = jnp.float32(X)
        three = nats(method(denoise, schedule, plan, x, {"label": labels}, keys))
        one = nats(method(denoise, schedule, plan, x[2:], {"label": labels[2:]}, keys[2:]))
        assert np.all(np.isfinite(three))
        assert three[2] == pytest.approx(one[0], abs=1e-6)


@pytest.mark.parametrize("rule", ["centered", "score_sde"])
def test_dequantized_bits_bound_those_of_the_bins(rule):
    """A smooth density of 1 dimension: the bound is tight, and misses by the offset if wrong."""
    v = np.arange(256)
    values = np.repeat(v[:, None] / 127.5 - 1.0, 512, axis=1)
    u = np.broadcast_to((np.arange(512) + 0.5) / 512, values.shape)
    x = dequantize(values, u, rule)
    log_p = -0.5 * ((x - 0.2) / 0.4) ** 2 - np.log(0.4 * np.sqrt(2 * np.pi))
    bits = -log_p.mean(1) / np.log(2) + dequantization_bits(rule)
    bins = np.log2(np.exp(log_p).mean(1)) - dequantization_bits(rule)
    assert np.all(bits >= -bins)
    np.testing.assert_allclose(bits, -bins, atol=1e-3)
    # The bins tile: their masses are those of one distribution.
    low, high = (dequantize(values, np.full(values.shape, end), rule)[:, 0] for end in (0.0, 1.0))
    np.testing.assert_allclose(high[:-1], low[1:], atol=1e-12)
    np.testing.assert_allclose(-np.log2(high - low), dequantization_bits(rule), atol=1e-9)
    assert np.exp2(bins).sum() == pytest.approx(1.0, abs=0.05)


def test_dequantization_adds_its_bits():
    schedule = SCHEDULES["linear"]
    density = nats(measure(ODE(solver="rk4", steps=50, dequantization="none"), schedule))
    discrete = nats(measure(ODE(solver="rk4", steps=50), schedule))
    # The noise of +-1/255 moves x a little.
    np.testing.assert_allclose(discrete, density - np.log(127.5), atol=0.05)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 10}, "'dopri5' chooses its steps"),
        ({"solver": "rk4"}, "steps=0: 'rk4' needs 1 or more"),
        ({"solver": "rk5"}, "solver='rk5': must be one of .*'rk4'"),
        ({"divergence": "hutchinson"}, "divergence='hutchinson': must be one of 'rademacher'"),
        ({"tolerance": 0.0}, "tolerance=0.0: must be above 0"),
        ({"probes": 0}, "probes=0: must be 1 or more"),
        ({"dequantization": "half"}, "dequantization='half': must be one of 'centered'"),
    ],
)
def test_wrong_options(fields, message):
    with pytest.raises(ValueError, match=message):
        ODE(**fields)
