import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion import TIME_SAMPLERS
from diffusion.schedules import edm, linear, rectified_flow
from diffusion.time_samplers import (
    Part,
    log_normal,
    logit_normal,
    low_discrepancy,
    mode,
    part_of_step,
    uniform,
)

KEY = jax.random.key(0)
QUANTILES = [name for name in TIME_SAMPLERS if name != "loss_second_moment"]


def draw(sampler, count, schedule, key=KEY):
    return sampler.draw(key, count, schedule, sampler.init(schedule))


def test_every_index_is_drawn_equally_often():
    level, weight, _ = draw(uniform(), 40_000, linear(timesteps=40))
    counts = np.bincount(level.t.astype(int), minlength=40)
    assert len(counts) == 40
    # Binomial with mean 1000 and deviation 31.
    assert np.all(abs(counts - 1000) < 5 * 31)
    assert np.all(weight == 1.0)


@pytest.mark.parametrize("schedule", [rectified_flow(margin=0.1), edm()])
def test_continuous_time_stays_in_range(schedule):
    level, weight, _ = draw(uniform(), 10_000, schedule)
    low, high = schedule.t_range
    assert low <= level.t.min() < low + 0.01
    assert high - 0.01 < level.t.max() <= high
    assert level.t.mean() == pytest.approx((low + high) / 2, abs=0.02)
    assert weight.shape == level.t.shape


def test_the_key_decides():
    first, again, other = (
        draw(uniform(), 8, linear(), jax.random.key(k)).level.t for k in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


# Trap: arange(0, 1, 1 / B) has B + 1 elements for B = 49, 98, 103, ... Each size is compiled.
@pytest.mark.parametrize("batch", [1, 2, 7, 49, 98, 103, 300])
def test_low_discrepancy_puts_one_draw_into_each_part(batch):
    t = np.sort(draw(low_discrepancy(), batch, edm()).level.t)
    assert len(t) == batch
    np.testing.assert_allclose(np.diff(t), 1.0 / batch, atol=1e-5)


def test_parts_of_a_step_share_the_strata_of_its_batch():
    t = []
    for index in range(4):
        with part_of_step(Part(KEY, index, 4)):
            # Each with a key of its own, as microbatches have.
            t.append(draw(low_discrepancy(), 2, edm(), jax.random.key(index)).level.t)
    np.testing.assert_allclose(np.diff(np.sort(np.concatenate(t))), 1 / 8, atol=1e-5)
    whole = draw(low_discrepancy(), 8, edm(), KEY).level.t
    np.testing.assert_allclose(np.stack(t, axis=1).ravel(), whole, atol=1e-6)


def test_which_distributions_are_of_uniform_time():
    found = {name for name, make in TIME_SAMPLERS.items() if make().uniform}
    assert found == {"uniform", "low_discrepancy", "loss_second_moment"}


def test_low_discrepancy_is_uniform_over_keys():
    t = jax.vmap(lambda key: draw(low_discrepancy(), 3, edm(), key).level.t)(
        jax.random.split(KEY, 3000)
    )
    assert stats.kstest(np.asarray(t)[:, 0], "uniform").pvalue > 0.01


def test_log_normal_is_that_of_edm():
    level = draw(log_normal(mean=-0.4, std=1.0), 20_000, edm()).level
    assert stats.kstest(np.log(level.sigma), "norm", args=(-0.4, 1.0)).pvalue > 0.01


def test_logit_normal_is_that_of_stable_diffusion_3():
    t = draw(logit_normal(mean=0.5, std=0.8), 20_000, rectified_flow()).level.t
    assert stats.kstest(np.log(t / (1 - t)), "norm", args=(0.5, 0.8)).pvalue > 0.01


def test_cosmap_has_its_density():
    """2 / (pi - 2 pi t + 2 pi t^2), Stable Diffusion 3 eq. 21."""
    t = draw(TIME_SAMPLERS["cosmap"](), 50_000, rectified_flow()).level.t
    counts, edges = np.histogram(t, bins=10, range=(0, 1))
    middle = (edges[1:] + edges[:-1]) / 2
    expected = 2 / (np.pi - 2 * np.pi * middle + 2 * np.pi * middle**2) * 5000
    np.testing.assert_allclose(counts, expected, rtol=0.06)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.0, 1.75])
def test_mode_is_its_formula(scale):
    t = draw(mode(scale=scale), 20_000, rectified_flow()).level.t
    u = np.random.default_rng(0).uniform(size=20_000)
    theirs = 1 - u - scale * (np.cos(np.pi / 2 * u) ** 2 - 1 + u)
    assert stats.ks_2samp(np.asarray(t), theirs).pvalue > 0.01


def test_laplace_is_laplace_in_logsnr():
    level = draw(TIME_SAMPLERS["laplace"](mean=1.0, scale=0.5), 20_000, rectified_flow()).level
    assert stats.kstest(np.asarray(level.logsnr), "laplace", args=(1.0, 0.5)).pvalue > 0.01


@pytest.mark.parametrize("name", QUANTILES)
@pytest.mark.parametrize("schedule", [linear(), rectified_flow(), edm()])
def test_density_is_that_of_the_draws(name, schedule):
    """Its integral over an interval of logsnr is the share of draws there."""
    level, _, log_density = draw(TIME_SAMPLERS[name](), 100_000, schedule)
    logsnr, density = np.asarray(level.logsnr), np.exp(np.asarray(log_density))
    assert np.all(np.isfinite(logsnr))
    order = np.argsort(logsnr)
    logsnr, density = logsnr[order], density[order]
    low, high = logsnr[20_000], logsnr[80_000]
    inside = (logsnr >= low) & (logsnr <= high)
    integral = np.trapezoid(density[inside], logsnr[inside])
    assert integral == pytest.approx(0.6, abs=0.01)


def test_density_of_log_normal_in_closed_form():
    """EDM's density at its middle, in closed form."""
    sampler = log_normal(mean=-1.2, std=1.2)
    _, log_density = sampler.at(jnp.array([0.5]), edm())
    # p(logsnr) = p(ln sigma) / 2.
    assert log_density[0] == pytest.approx(math.log(0.5 / (1.2 * math.sqrt(2 * math.pi))))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: log_normal(std=0.0), "log_normal: std=0.0 must be positive"),
        (lambda: logit_normal(std=-1.0), "logit_normal: std=-1.0"),
        (lambda: mode(scale=2.0), "mode: scale=2.0 must lie in"),
        (lambda: TIME_SAMPLERS["laplace"](scale=0.0), "laplace: scale=0.0"),
    ],
)
def test_impossible_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
