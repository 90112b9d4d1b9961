import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from diffusion.gaussian import (
    discretized_log_likelihood,
    full_chain,
    learned_range_log_variance,
    normal_kl,
    posterior,
    q_sample,
    reverse_chain,
    transition_log_variance,
)
from diffusion.grids import respaced, uniform
from diffusion.levels import NoiseLevel, alpha_sigma
from diffusion.schedules import cosine, edm, linear, rectified_flow

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden/diffusion/openai.npz")
SCHEDULES = {"linear": linear, "cosine": cosine}
# Largest relative error of a reference that forms 1 - alpha_bar in float64.
REFERENCE = 1e-9


def level_at(logsnr, scaling):
    return NoiseLevel(np.zeros(np.shape(logsnr)), logsnr, *alpha_sigma(logsnr, scaling))


@pytest.mark.parametrize(
    ("name", "timesteps", "steps"),
    [("linear", 1000, 1000), ("cosine", 4000, 4000), ("linear", 1000, 10), ("cosine", 400, 7)],
)
def test_tables_of_openai(name, timesteps, steps):
    schedule = SCHEDULES[name](timesteps=timesteps)
    grid = respaced()(schedule, steps, "zero")
    chain = reverse_chain(grid)

    def golden(key):
        return GOLDEN[f"tables/{name}/{timesteps}/{steps}/{key}"]

    rows = steps - 1 - golden("rows")
    ours = {
        "alphas_cumprod": grid.alpha[rows] ** 2,
        "posterior_variance": posterior(
            NoiseLevel(*(f[rows] for f in grid)), NoiseLevel(*(f[rows + 1] for f in grid))
        ).variance,
        "posterior_log_variance_clipped": chain.log_small[rows],
        "posterior_mean_coef1": chain.x0_coef[rows],
        "posterior_mean_coef2": chain.z_coef[rows],
        "log_betas": chain.log_large[rows],
    }
    for key, table in ours.items():
        np.testing.assert_allclose(table, golden(key), rtol=REFERENCE, err_msg=key)


def test_first_posterior_variance_is_copied():
    """Trap: it is 0, whose log is -inf; index 1 of DDPM's chain has log variance -9.817."""
    chain = full_chain(linear())
    assert chain.log_small[0] == chain.log_small[1] == pytest.approx(-9.817, abs=1e-3)
    assert np.all(np.isfinite(np.stack(chain)))
    # Where the chain stops at noise there is nothing to copy.
    stopped = reverse_chain(respaced()(linear(), 10, "sigma_min"))
    assert len(np.unique(stopped.log_small)) == 10
    assert np.all(np.isfinite(np.stack(reverse_chain(respaced()(linear(), 1, "zero")))))


@pytest.mark.parametrize("name", SCHEDULES)
def test_q_sample_and_posterior_mean_of_openai(name):
    schedule, t = SCHEDULES[name](), GOLDEN["train/t"]
    x0, z = GOLDEN["train/x0"], GOLDEN[f"train/{name}/z"]
    now = schedule.level(t)
    np.testing.assert_allclose(q_sample(x0, GOLDEN["train/eps"], now), z, rtol=1e-9, atol=1e-12)
    q = posterior(now, schedule.level(t - 1))
    mean = q.x0_coef[:, None, None, None] * x0 + q.z_coef[:, None, None, None] * z
    np.testing.assert_allclose(mean, GOLDEN[f"train/{name}/posterior_mean"], rtol=1e-8, atol=1e-10)
    single = q_sample(
        jnp.float32(x0), jnp.float32(GOLDEN["train/eps"]), schedule.level(jnp.asarray(t))
    )
    np.testing.assert_allclose(single, z, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scaling", ["vp", "ve", "flow"])
@given(now=st.floats(-20.0, 19.0), gap=st.floats(1e-6, 20.0), x0=st.floats(-2, 2))
def test_posterior_is_bayes(scaling, now, gap, x0):
    """q(z_s | z_t, x0) q(z_t | x0) = q(z_t | z_s) q(z_s | x0), as moments of the joint Gaussian."""
    t, s = level_at(now, scaling), level_at(now + gap, scaling)
    q = posterior(t, s)
    ratio = t.alpha / s.alpha
    # Total mean and variance of z_s, and its covariance with z_t.
    assert q.x0_coef + q.z_coef * t.alpha == pytest.approx(s.alpha, rel=1e-12)
    assert q.variance + q.z_coef**2 * t.sigma**2 == pytest.approx(s.sigma**2, rel=1e-12)
    assert q.z_coef * t.sigma**2 == pytest.approx(ratio * s.sigma**2, rel=1e-12)
    assert q.log_variance == pytest.approx(np.log(q.variance), abs=1e-9)
    beta = np.exp(transition_log_variance(t, s))
    assert ratio**2 * s.sigma**2 + beta == pytest.approx(t.sigma**2, rel=1e-12)


def test_small_steps_keep_their_digits():
    """beta of a step of 1e-8 in logsnr: 1 - SNR ratio by subtraction has no more than 8 digits."""
    beta = np.exp(transition_log_variance(level_at(2.0, "ve"), level_at(2.0 + 1e-8, "ve")))
    gap = (2.0 + 1e-8) - 2.0
    assert beta == pytest.approx(np.exp(-2.0) * (gap - gap**2 / 2), rel=1e-12)


def test_posterior_in_jax():
    t = np.array([1, 10, 500, 999])
    exact = posterior(linear().level(t), linear().level(t - 1))
    single = posterior(linear().level(jnp.asarray(t)), linear().level(jnp.asarray(t - 1)))
    for a, b in zip(exact, single, strict=True):
        assert b.dtype == jnp.float32
        np.testing.assert_allclose(b, a, rtol=1e-4)


@pytest.mark.parametrize("schedule", [linear(), rectified_flow(), edm()])
def test_chains_of_every_scaling_are_finite_and_ordered(schedule):
    chain = reverse_chain(uniform()(schedule, 20, "zero"))
    assert np.all(np.isfinite(np.stack(chain)))
    assert np.all(chain.log_small[:-1] <= chain.log_large[:-1]) or schedule.scaling == "flow"


def test_learned_range_is_not_squashed():
    assert learned_range_log_variance(-1.0, -5.0, -3.0) == -5.0
    assert learned_range_log_variance(1.0, -5.0, -3.0) == -3.0
    assert learned_range_log_variance(2.0, -5.0, -3.0) == -2.0


@given(
    means=st.tuples(st.floats(-3, 3), st.floats(-3, 3)),
    log_variances=st.tuples(st.floats(-6, 2), st.floats(-6, 2)),
)
def test_kl_by_quadrature(means, log_variances):
    p, q = (norm(m, np.exp(0.5 * v)) for m, v in zip(means, log_variances, strict=True))
    x = np.linspace(p.ppf(1e-14), p.isf(1e-14), 4001)
    expected = np.trapezoid(p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), x)
    kl = normal_kl(means[0], log_variances[0], means[1], log_variances[1])
    assert kl >= 0.0
    assert kl == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_kl_of_near_equal_variances_keeps_its_digits_in_float32():
    gap = 1e-3
    kl = normal_kl(jnp.float32(0), jnp.float32(gap), jnp.float32(0), jnp.float32(0))
    assert kl == pytest.approx(0.5 * (np.expm1(gap) - gap), rel=1e-3)


def test_tanh_likelihood_of_openai():
    x, mean, log_std = (GOLDEN[f"likelihood/{key}"] for key in ("x", "mean", "log_std"))
    with jax.enable_x64(True):
        got = discretized_log_likelihood(*map(jnp.asarray, (x, mean, log_std)), "tanh")
        np.testing.assert_allclose(got, GOLDEN["likelihood/log_p"], rtol=1e-9, atol=1e-12)
    # The floor: 1e-12, 39.86 bits.
    floor = discretized_log_likelihood(jnp.zeros(1), jnp.ones(1), jnp.array([-6.0]), "tanh")
    assert -floor[0] / np.log(2.0) == pytest.approx(39.86, abs=0.01)


@pytest.mark.parametrize("log_std", [-6.0, -4.6, -2.0, 0.0, 1.0])
@pytest.mark.parametrize("mean", [-1.1, -0.3, 0.02, 0.999])
def test_exact_likelihood_sums_to_one_and_is_scipys(log_std, mean):
    v = np.arange(256)
    x = v / 127.5 - 1.0
    lower = np.where(v == 0, -np.inf, x - 1 / 255)
    upper = np.where(v == 255, np.inf, x + 1 / 255)
    n = norm(mean, np.exp(log_std))
    # On the side of the mean where both are small.
    mass = np.where(x > mean, n.sf(lower) - n.sf(upper), n.cdf(upper) - n.cdf(lower))
    got = discretized_log_likelihood(
        jnp.float32(x), jnp.full(256, mean), jnp.full(256, log_std), "exact"
    )
    assert np.sum(np.exp(got)) == pytest.approx(1.0, abs=1e-4)
    seen = mass > 1e-290
    np.testing.assert_allclose(got[seen], np.log(mass[seen]), rtol=3e-5, atol=3e-5)
    assert np.all(np.isfinite(got))


def test_tanh_is_near_exact_within_three_sigma():
    """Trap: the approximation is within 0.06 bit there, and wrong by far in the tails."""
    x = jnp.zeros(200)
    mean, log_std = jnp.linspace(-0.3, 0.3, 200), jnp.full(200, np.log(0.1))
    exact, tanh = (discretized_log_likelihood(x, mean, log_std, m) for m in ("exact", "tanh"))
    assert np.max(abs(exact - tanh)) / np.log(2.0) < 0.06
    far = (jnp.zeros(1), jnp.ones(1), jnp.full(1, np.log(0.05)))
    exact, tanh = (discretized_log_likelihood(*far, m)[0] for m in ("exact", "tanh"))
    assert exact < -150.0 < tanh


def test_likelihood_gradients_survive_a_poor_prediction():
    """d log p / d mean of a Gaussian at distance d is d / var, at any distance."""

    def log_p(mean, x):
        x, log_std = jnp.full(1, x, jnp.float32), jnp.full(1, np.log(0.005))
        return discretized_log_likelihood(x, mean[None], log_std)[0]

    for x in (-1.0, 0.0, 1.0):
        for d in (0.5, 5.0, 500.0):
            for mean, sign in ((x + d, -1.0), (x - d, 1.0)):
                if (x, sign) in ((-1.0, 1.0), (1.0, -1.0)):
                    continue  # inside an open-ended bin: log p is 0
                slope = jax.grad(log_p)(jnp.float32(mean), x)
                assert slope == pytest.approx(sign * d / 0.005**2, rel=0.02)


def test_edges_are_one_sided():
    inside = (jnp.array([-1.0, 1.0]), jnp.array([-1.5, 1.5]), jnp.full(2, -5.0))
    for method in ("exact", "tanh"):
        np.testing.assert_allclose(discretized_log_likelihood(*inside, method), 0.0, atol=1e-6)


def test_unknown_likelihood():
    with pytest.raises(ValueError, match=r"method='exakt'.*'exact'"):
        discretized_log_likelihood(jnp.zeros(1), jnp.zeros(1), jnp.zeros(1), "exakt")
