"""The bound of a chain, term by term: against OpenAI's program and against closed forms."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from diffusion import CLIPS, Prediction, denoiser, schedules, vdm
from diffusion import clip as clipped
from diffusion.gaussian import normal_kl
from diffusion.likelihood import VLB
from diffusion.likelihood.base import cast
from diffusion.parameterization import Eps
from diffusion.schedules import cosine, edm, linear, rectified_flow, zero_terminal_snr
from tests.golden.diffusion.toy import eps_of, fraction_of

GOLDEN = np.load(pathlib.Path(__file__).parents[2] / "golden/diffusion/openai_bound.npz")
CHAINS = {"linear/1000/12": linear(), "cosine/25/25": cosine(timesteps=25)}
MEAN, VARIANCE = 0.3, 0.2
# Gauss-Hermite nodes: two of each are exact for all that is quadratic in data and noise.
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(2)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def exact(x, level, condition):
    """The denoiser of N(MEAN, VARIANCE)."""
    level = level.like(x)
    total = level.alpha**2 * VARIANCE + level.sigma**2
    rest = x - level.alpha * MEAN
    return Prediction(MEAN + level.alpha * VARIANCE / total * rest, level.sigma / total * rest)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("name", CHAINS)
def test_terms_of_openai(name, variance, clip):
    learned = variance == "learned_range"

    def network(x, time, condition):
        time = time.reshape(-1, 1, 1, 1)
        eps = eps_of(jnp, x, time)
        return jnp.concatenate([eps, fraction_of(jnp, x, time)], -1) if learned else eps

    schedule = CHAINS[name]
    method = VLB(
        variance="auto" if learned else variance,
        decoder="tanh",
        clip="static" if clip else "none",
        timesteps=int(name.rsplit("/", 1)[1]),
    )
    golden = f"{name}/{variance}/{clip}"
    with jax.enable_x64(True):
        plan = cast(method.plan(schedule, learned))
        x0, noise = jnp.asarray(GOLDEN["x0"]), jnp.asarray(GOLDEN[f"{name}/noise"])
        denoise = denoiser(network, schedule, Eps(), learned)
        denoise = clipped(denoise, CLIPS[method.clip]())

        @jax.jit
        @jax.vmap
        def terms(t, eps):
            return method.term(denoise, plan, x0, None, jnp.full(len(x0), t), eps)

        got = terms(jnp.arange(len(noise)), noise)
        for field, theirs in {"bits": "vb", "x0_mse": "xstart_mse", "eps_mse": "mse"}.items():
            expected = GOLDEN[f"{golden}/{theirs}"].T
            np.testing.assert_allclose(got[field], expected, rtol=1e-7, err_msg=field)
        prior = GOLDEN[f"{golden}/prior_bpd"]
        np.testing.assert_allclose(vdm.prior_bits(x0, plan.prior), prior, rtol=1e-6)


def measure(method, schedule, x0, keys, denoise=exact):
    plan = method.plan(schedule, False)
    return jax.jit(lambda: method(denoise, schedule, plan, x0, None, keys))()


def expected_terms(method, schedule):
    """Closed form of E[L_t] for t > 0 in bits: the posterior variance of x0 in the normal KL."""
    plan = method.plan(schedule, False)
    alpha, sigma = plan.levels.alpha, plan.levels.sigma
    spread = VARIANCE * sigma**2 / (alpha**2 * VARIANCE + sigma**2)
    log_variance = (
        plan.chain.log_large if method.variance == "fixed_large" else plan.chain.log_small
    )
    kl = normal_kl(0.0, plan.chain.log_small, np.zeros_like(sigma), log_variance)
    kl = kl + 0.5 * plan.chain.x0_coef**2 * spread * np.exp(-log_variance)
    return kl[1:] / np.log(2.0)


def terms_at(method, schedule, x0, eps, weights):
    """Mean terms over data and noise, which are nodes of a quadrature."""
    plan = cast(method.plan(schedule, False))
    steps = len(plan.levels.t)
    x0, eps = (jnp.asarray(v, jnp.float32)[:, None, None, None] for v in (x0, eps))

    def bits(t):
        return method.term(exact, plan, x0, None, jnp.full(len(x0), t), eps)["bits"]

    return weights @ np.asarray(jax.jit(jax.vmap(bits, out_axes=1))(jnp.arange(steps)))


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize(
    "schedule",
    [
        linear(),
        cosine(),
        schedules.vdm(),
        rectified_flow(margin=1e-3),
        edm(),
        zero_terminal_snr(linear()),
    ],
)
def test_bound_of_the_optimal_denoiser(schedule, variance):
    """Two nodes for x0 and eps each: the KL is quadratic in both, so that nothing is random."""
    timesteps = 0 if schedule.num_timesteps else 200
    method = VLB(variance, clip="none", timesteps=timesteps)
    x0, eps = np.meshgrid(MEAN + VARIANCE**0.5 * NODES, NODES, indexing="ij")
    got = terms_at(method, schedule, x0.ravel(), eps.ravel(), np.outer(WEIGHTS, WEIGHTS).ravel())
    expected = expected_terms(method, schedule)
    np.testing.assert_allclose(got[1:], expected, rtol=2e-4, atol=1e-7)
    assert got[1:].sum() == pytest.approx(expected.sum(), rel=2e-5)


@pytest.mark.parametrize("value", [0, 90, 255])
def test_decoder_of_the_optimal_denoiser_by_quadrature(value):
    method, schedule = VLB("fixed_small", clip="none"), linear()
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    x = value / 127.5 - 1.0
    got = terms_at(method, schedule, np.full(80, x), nodes, weights)[0]
    plan = method.plan(schedule, False)
    level = schedule.level(np.float64(0))
    std = np.exp(0.5 * plan.chain.log_small[0])

    def nll(e):
        z = level.alpha * x + level.sigma * e
        gain = level.alpha * VARIANCE / (level.alpha**2 * VARIANCE + level.sigma**2)
        mean = MEAN + gain * (z - level.alpha * MEAN)
        low = -np.inf if value == 0 else (x - 1 / 255 - mean) / std
        high = np.inf if value == 255 else (x + 1 / 255 - mean) / std
        mass = norm.cdf(high) - norm.cdf(low) if low < 0 else norm.sf(low) - norm.sf(high)
        return -np.log2(mass) * norm.pdf(e)

    assert got == pytest.approx(quad(nll, -7, 7, limit=200)[0], rel=1e-3)


def test_parts_are_sums_of_terms_and_draws_are_unbiased():
    """A half of the terms: each draw is off, their mean over images is not."""
    schedule, keys = linear(timesteps=40), jax.random.split(jax.random.key(0), 512)
    x0 = jnp.full((512, 1, 1, 1), 0.2)
    whole = measure(VLB("fixed_large"), schedule, x0, keys)
    np.testing.assert_allclose(
        whole.parts["diffusion"], whole.terms["bits"][:, 1:].sum(1), rtol=1e-5
    )
    np.testing.assert_array_equal(whole.parts["decoder"], whole.terms["bits"][:, 0])
    some = measure(VLB("fixed_large", draws=12), schedule, x0, keys)
    assert some.terms["t"].shape == (512, 12)
    t = np.asarray(some.terms["t"])
    assert np.all(t[:, 0] == 0)
    assert np.all((t[:, 1:] >= 1) & (t[:, 1:] <= 39) & (np.diff(t) >= 0))
    # As often as the weights undo.
    counts = np.bincount(t[:, 1:].astype(int).ravel(), minlength=40)
    share = VLB().plan(schedule, False).share
    assert share.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(counts / 512, 11 * share, atol=0.09)
    assert np.all(share[1:] >= 0.1 / 39)
    for name in ("prior", "diffusion", "decoder"):
        gap = np.asarray(some.parts[name] - whole.parts[name])
        assert abs(gap.mean()) <= 4 * gap.std() / np.sqrt(512) + 1e-7
    spread, mean = (f(np.asarray(some.parts["diffusion"])) for f in (np.std, np.mean))
    assert 0 < spread < 0.5 * mean


def test_clipping_is_by_default_and_only_helps():
    """Data within [-1, 1]: to project on it brings every prediction nearer."""

    def wild(x, level, condition):
        x0 = exact(x, level, condition).x0 + 0.9
        return Prediction(x0, (x - level.like(x).alpha * x0) / level.like(x).sigma)

    schedule, keys = linear(timesteps=20), jax.random.split(jax.random.key(1), 4)
    x0 = jnp.full((4, 1, 1, 1), 0.95)
    clipped, free = (
        measure(method, schedule, x0, keys, wild).terms["bits"]
        for method in (VLB(), VLB(clip="none"))
    )
    assert np.all(clipped <= free + 1e-5)
    assert np.any(clipped < 0.9 * free)


@pytest.mark.parametrize(
    ("method", "schedule", "message"),
    [
        (
            VLB(),
            schedules.vdm(),
            r"continuous time: give the number of steps, vlb\(timesteps=1000\), or .*vdm",
        ),
        (VLB(variance="learned_range"), linear(), "this network has no learned variance"),
        (VLB(draws=50), linear(timesteps=40), "draws=50: must be at most the chain's 40 steps"),
        (VLB(timesteps=50), linear(timesteps=40), "40"),
    ],
)
def test_what_has_no_bound(method, schedule, message):
    with pytest.raises(ValueError, match=message):
        method.plan(schedule, False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variance": "small"}, "variance='small': must be one of 'auto'"),
        ({"decoder": "erf"}, "decoder='erf': must be one of 'exact'"),
        ({"draws": 1}, r"draws=1: must be 0 \(all terms\) or 2 or more"),
        ({"timesteps": -1}, "timesteps=-1: must be 0"),
    ],
)
def test_wrong_options(fields, message):
    with pytest.raises(ValueError, match=message):
        VLB(**fields)
