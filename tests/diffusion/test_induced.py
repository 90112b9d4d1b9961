"""What is trained: conversions, weights and densities together."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion import (
    PARAMETERIZATIONS,
    SCHEDULES,
    TIME_SAMPLERS,
    WEIGHTINGS,
    Objective,
    Uncertainty,
)
from diffusion.gaussian import q_sample
from diffusion.induced import induced, path
from diffusion.levels import SCALINGS, NoiseLevel, alpha_sigma
from diffusion.schedules import linear, shifted_cosine, vdm
from diffusion.time_samplers import Draw

KEY = jax.random.key(0)


def objective(schedule, kind="eps", weighting="constant", sampler="uniform", **kwargs):
    form = PARAMETERIZATIONS[kind]()
    return Objective(schedule, form, WEIGHTINGS[weighting](), TIME_SAMPLERS[sampler](), **kwargs)


def single(logsnr, scaling):
    logsnr = jnp.full(3, logsnr, jnp.float32)
    return NoiseLevel(jnp.zeros(3), logsnr, *alpha_sigma(logsnr, scaling))


@pytest.mark.parametrize("kind", PARAMETERIZATIONS)
@pytest.mark.parametrize("scaling", SCALINGS)
@given(logsnr=st.floats(-20.0, 20.0))
def test_float32_round_trips(kind, scaling, logsnr):
    """x0 and eps as the shares alpha x0 and sigma eps of z, to 1e-5 of the size of z.

    That is what any conversion can keep: x0 told by eps has its error divided by alpha. (eps - z is
    made for vp: on ve it is nearly -z, and eps is lost in it.)
    """
    if (kind, scaling) == ("residual", "ve"):
        return
    level, form = single(logsnr, scaling), PARAMETERIZATIONS[kind]()
    x0, eps = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 64)), jnp.float32)
    z = q_sample(x0, eps, level)
    x0_hat, eps_hat = form.prediction(form.target(x0, eps, level), z, level)
    size = math.hypot(level.alpha[0], level.sigma[0])
    np.testing.assert_allclose(level.alpha[0] * (x0_hat - x0) / size, 0.0, atol=1e-5)
    np.testing.assert_allclose(level.sigma[0] * (eps_hat - eps) / size, 0.0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "scaling"),
    [("v", "vp"), ("flow", "flow"), ("flow", "vp"), ("edm", "vp"), ("edm", "flow"), ("edm", "ve")],
)
@given(logsnr=st.floats(-20.0, 20.0))
def test_the_well_conditioned_ones_keep_both_at_every_level(kind, scaling, logsnr):
    level, form = single(logsnr, scaling), PARAMETERIZATIONS[kind]()
    x0, eps = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 64)), jnp.float32)
    z = q_sample(x0, eps, level)
    got = form.prediction(form.target(x0, eps, level), z, level)
    np.testing.assert_allclose(got[0], x0, atol=1e-5)
    np.testing.assert_allclose(got[1], eps, atol=1e-5)


# Of SNR and the density p over logsnr: the weight of the x0-loss as published.
X0_WEIGHTS = {
    "snr": lambda s, p: s,
    "truncated_snr": lambda s, p: np.maximum(s, 1.0),
    "snr_plus_one": lambda s, p: s + 1.0,
    "min_snr": lambda s, p: np.minimum(s, 5.0),
    "soft_min_snr": lambda s, p: 4.0 * s / (s + 4.0),
    "p2": lambda s, p: s / (1.0 + s),
    "edm": lambda s, p: s + 4.0,
    "sigmoid": lambda s, p: s / (1.0 + s) / p,
    "likelihood": lambda s, p: s / p,
}


@pytest.mark.parametrize("name", X0_WEIGHTS)
def test_every_weighting_on_x0_eps_and_v(name):
    assert X0_WEIGHTS.keys() == WEIGHTINGS.keys() - {"constant"}
    level = linear().level(np.arange(0, 1000, 7))
    snr, density = np.exp(level.logsnr), np.linspace(0.01, 2.0, len(level.t))
    on_x0 = X0_WEIGHTS[name](snr, density)
    for kind, factor in (("x0", 1.0), ("eps", snr), ("v", snr + 1.0)):
        got = objective(linear(), kind, name).raw_weight(level, np.log(density))
        np.testing.assert_allclose(got, on_x0 / factor, rtol=1e-9, err_msg=kind)
    eps = objective(linear(), "eps", name).raw_weight(level, np.log(density))
    known = {"snr": 1.0, "min_snr": np.minimum(5.0 / snr, 1.0), "p2": 1.0 / (1.0 + snr)}
    if name in known:
        np.testing.assert_allclose(eps, known[name] + 0.0 * snr, rtol=1e-9)


@pytest.mark.parametrize(
    ("kind", "weighting"), [("eps", "snr"), ("v", "snr_plus_one"), ("edm", "edm")]
)
def test_unit_weights(kind, weighting):
    level = linear().level(np.arange(1000))
    np.testing.assert_allclose(objective(linear(), kind, weighting).raw_weight(level), 1.0, 1e-9)


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
@pytest.mark.parametrize("sampler", [n for n in TIME_SAMPLERS if n != "loss_second_moment"])
def test_sigmoid_and_likelihood_do_not_depend_on_the_sampler(kind, sampler):
    for weighting, log_total in (
        ("sigmoid", lambda logsnr: -np.logaddexp(0.0, logsnr)),
        ("likelihood", np.zeros_like),
    ):
        curves = induced(objective(shifted_cosine(), kind, weighting, sampler), draws=500)
        inside = abs(curves.logsnr) < 12.0
        assert inside.sum() > 300
        expected = log_total(curves.logsnr[inside])
        np.testing.assert_allclose(curves.log_total[inside], expected, atol=2e-5)


def test_another_weighting_does():
    totals = []
    for sampler in ("uniform", "log_normal"):
        curves = induced(objective(shifted_cosine(), "eps", "min_snr", sampler), draws=500)
        totals.append(np.interp(2.0, curves.logsnr, curves.log_total))
    assert abs(totals[0] - totals[1]) > 0.1


@pytest.mark.parametrize("name", [*SCHEDULES])
def test_curves_of_every_schedule(name):
    if name == "table":
        return
    make = SCHEDULES[name]
    schedule = make(schedule=linear()) if name == "zero_terminal_snr" else make()
    kind = "v" if name == "zero_terminal_snr" else "eps"
    for sampler in ("uniform", "log_normal"):
        for weighting in WEIGHTINGS:
            ours = objective(schedule, kind, weighting, sampler)
            curves = induced(ours, draws=64)
            assert all(np.all(np.isfinite(c)) for c in curves[:7]), (sampler, weighting)
            assert np.all(np.diff(curves.logsnr) > 0)
            assert np.isfinite(curves.mean_raw)
    along = path(ours)
    assert along.t[0] == schedule.t_range[0]
    assert along.t[-1] == schedule.t_range[1]
    np.testing.assert_array_equal(along.logsnr, schedule.logsnr(along.t))


@pytest.mark.parametrize("sampler", TIME_SAMPLERS)
def test_density_has_area_one(sampler):
    curves = induced(objective(linear(), "eps", "snr", sampler))
    area = np.trapezoid(np.exp(curves.log_density), curves.logsnr)
    assert area == pytest.approx(1.0, abs=0.03)
    assert curves.mean_raw == pytest.approx(1.0, rel=1e-5)


def test_bound_of_an_optimal_denoiser_in_closed_form():
    """Data N(0, s^2): the eps-error is s^2 SNR / (s^2 SNR + 1), its integral over logsnr a log."""
    s, schedule = 0.6, vdm()
    ours = objective(schedule, sampler="low_discrepancy", loss="vdm")
    x0 = s * jax.random.normal(KEY, (4096, 64))

    def network(z, time, condition):
        logsnr = 13.3 - 18.3 * time / 1000.0
        alpha, sigma = alpha_sigma(logsnr, "vp")
        return (sigma / (alpha**2 * s**2 + sigma**2))[:, None] * z

    def exact(logsnr):
        return 0.5 * np.log1p(s**2 * np.exp(logsnr)) / np.log(2.0)

    parts = jax.jit(lambda: ours(network, x0, None, jax.random.key(1)).metrics)()
    diffusion = exact(13.3) - exact(-5.0)
    assert parts["diffusion_bits"].mean() == pytest.approx(diffusion, rel=5e-3)
    alpha, sigma = alpha_sigma(-5.0, "vp")
    prior = 0.5 * (alpha**2 * s**2 + sigma**2 - 1.0 - 2.0 * np.log(sigma)) / np.log(2.0)
    assert parts["prior_bits"].mean() == pytest.approx(prior, rel=2e-2)


def test_the_best_uncertainty_is_the_log_of_the_mean_loss():
    """e^u of each level, found by descent, is the mean of its losses."""
    uncertainty = Uncertainty(32)
    ours = objective(linear(), uncertainty=uncertainty)
    t = jnp.repeat(jnp.array([100, 400, 800]), 32)
    drawn = Draw(linear().level(t))
    eps = jax.random.normal(KEY, (96, 4)) * jnp.repeat(jnp.array([0.3, 1.0, 2.0]), 32)[:, None]
    start = ours.init(KEY)

    def loss(kernel):
        params = {"uncertainty": start["uncertainty"] | {"kernel": kernel}}
        zeros = jnp.zeros_like(eps)
        value, metrics = ours.loss_at(lambda x, *_: 0.0 * x, zeros, None, drawn, eps, params)
        return value.mean(), metrics["mse"]

    @jax.jit
    def descend(kernel):
        def step(kernel, _):
            return kernel - jax.grad(lambda k: loss(k)[0])(kernel), None

        return jax.lax.scan(step, kernel, None, length=3000)[0]

    kernel = descend(start["uncertainty"]["kernel"])
    u = uncertainty(start["uncertainty"] | {"kernel": kernel}, linear().level(t[::32]).logsnr)
    mean = loss(kernel)[1].reshape(3, 32).mean(axis=1)
    np.testing.assert_allclose(jnp.exp(u), mean, rtol=1e-2)
