"""The variance of Analytic-DPM, on data where it is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import Prediction
from diffusion.grids import respaced, uniform
from diffusion.schedules import edm, linear, rectified_flow, zero_terminal_snr
from diffusion.solvers import at, ddim, ddpm
from diffusion.solvers.analytic import EpsEstimates, estimate, load
from tests.diffusion.solvers.walk import MIXTURE, law, marginal


def exact(grid, variance=0.3, mean=0.4):
    """E |eps_hat|^2 of N(mean, variance): sigma^2 / (alpha^2 variance + sigma^2)."""
    noisy = at(grid, slice(0, -1))
    square = noisy.sigma**2 / (noisy.alpha**2 * variance + noisy.sigma**2)
    return EpsEstimates(noisy.logsnr, square, variance + mean**2)


@pytest.mark.parametrize("schedule", [linear(), rectified_flow(), edm()])
@pytest.mark.parametrize("steps", [2, 5, 20])
def test_gaussian_data_come_out_exactly_at_any_number_of_steps(schedule, steps, tmp_path):
    """The reverse step of Gaussian data is Gaussian: with its own variance nothing is lost."""
    grid = uniform()(schedule, steps, "sigma_min")
    exact(grid).save(tmp_path / "eps.json")
    got = law(ddpm("analytic", str(tmp_path / "eps.json")), grid, schedule)
    np.testing.assert_allclose(got, marginal(at(grid, -1)), rtol=1e-5)
    # The posterior's own variance is that of data without any.
    assert law(ddpm(), grid, schedule)[1] < 0.9 * got[1]


def test_it_lies_between_the_posteriors_and_ddpms(tmp_path):
    """fixed_small is that of a point, fixed_large that of unit variance; data of both are exact."""
    grid = respaced()(linear(), 10, "sigma_min")
    for variance, rule in ((0.0, "fixed_small"), (1.0, "fixed_large")):
        path = str(tmp_path / f"{variance}.json")
        exact(grid, variance, 0.0).save(path)
        low = ddpm("analytic", path).plan(grid, linear()).log_low
        np.testing.assert_allclose(low, ddpm(rule).plan(grid, linear()).log_low, rtol=1e-6)


def jax_gaussian(scale):
    def denoise(x, level, condition):
        total = 0.3 * level.alpha**2 + level.sigma**2
        deviation = x - 0.4 * level.alpha
        x0 = 0.4 + scale * 0.3 * level.alpha / total * deviation
        return Prediction(x0, scale * level.sigma / total * deviation)

    return denoise


def test_estimates_from_data(tmp_path):
    """Monte Carlo of 3 batches against the closed form; from pure noise too."""
    schedule = zero_terminal_snr(linear())
    grid = respaced()(schedule, 12, "sigma_min")
    finite = at(grid, slice(1, None))
    keys = jax.random.split(jax.random.key(0), 3)
    batches = [(0.4 + 0.3**0.5 * jax.random.normal(key, (512, 8, 8, 1)), None) for key in keys]
    found = estimate(jax_gaussian, jnp.float32(1.0), batches, finite, jax.random.key(1))
    wanted = exact(grid)
    assert found.data_square == pytest.approx(0.46, rel=0.02)
    # 98304 squares, each with a relative deviation of sqrt(2).
    np.testing.assert_allclose(found.eps_square[:-1], wanted.eps_square[1:], rtol=0.02)
    found.save(tmp_path / "eps.json")
    again = load(tmp_path / "eps.json")
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    variance = again.x0_variance(grid.logsnr[:-1])
    assert np.all((variance >= 0.0) & (variance <= found.data_square))
    # (1 - E |eps|^2) / SNR: the estimate has lost it at low SNR.
    inside = grid.logsnr[:-1] > -1.0
    total = grid.alpha**2 * 0.3 + grid.sigma**2
    closed = (0.3 * grid.sigma**2 / total)[:-1]
    np.testing.assert_allclose(variance[inside], closed[inside], rtol=0.1)
    plan = ddpm("analytic", str(tmp_path / "eps.json")).plan(grid, schedule)
    assert np.all(np.isfinite(plan.log_low))
    twice = estimate(jax_gaussian, jnp.float32(2.0), batches, finite, jax.random.key(1))
    np.testing.assert_allclose(twice.eps_square, 4.0 * found.eps_square, rtol=1e-5)


def test_it_beats_the_fixed_variances_on_a_mixture(tmp_path):
    """Variance of samples of few steps against that of the data, in the mean over pixels."""
    schedule, rng = linear(), np.random.default_rng(0)
    grid = respaced()(schedule, 6, "sigma_min")
    x0 = np.where(rng.random(40_000) < 0.3, -0.8, 0.6)
    x0 = x0 + np.where(x0 < 0.0, 0.05, 0.1) ** 0.5 * rng.standard_normal(x0.shape)
    square = []
    for k in range(6):
        level = at(grid, k)
        z = level.alpha * x0 + level.sigma * rng.standard_normal(x0.shape)
        square.append(np.mean(MIXTURE(z, level).eps ** 2))
    path = str(tmp_path / "eps.json")
    EpsEstimates(grid.logsnr[:-1], np.array(square), np.mean(x0**2)).save(path)
    error = {}
    for solver in (ddpm(), ddpm("fixed_large"), ddpm("analytic", path), ddim(1.0)):
        x = rng.standard_normal(x0.shape) * grid.sigma[0]
        plan = solver.plan(grid, schedule)
        for k in range(6):
            row = jax.tree.map(lambda leaf, k=k: leaf[k], plan)
            x = solver.step(x, MIXTURE, row, rng.standard_normal(x.shape))
        error[repr(solver)] = abs(np.var(x) - np.var(x0))
    assert error.pop(repr(ddpm("analytic", path))) < 0.3 * min(error.values())


def test_refusals(tmp_path):
    grid = respaced()(linear(), 5, "sigma_min")
    path = tmp_path / "eps.json"
    estimates = exact(grid)
    with pytest.raises(ValueError, match=r"'analytic' needs the file"):
        ddpm("analytic")
    with pytest.raises(ValueError, match="others none"):
        ddpm("fixed_small", "eps.json")
    with pytest.raises(ValueError, match=r"eps.json.*cannot be read.*estimate\(...\).save"):
        ddpm("analytic", str(path)).plan(grid, linear())
    estimates._replace(logsnr=estimates.logsnr[::-1]).save(path)
    with pytest.raises(ValueError, match="must rise"):
        load(path)
    EpsEstimates(*(field[1:] for field in estimates[:2]), 0.5).save(path)
    with pytest.raises(ValueError, match="estimate at the levels of the grid"):
        ddpm("analytic", str(path)).plan(grid, linear())
    with pytest.raises(ValueError, match="clean data and pure noise"):
        estimate(jax_gaussian, 1.0, [], respaced()(linear(), 5, "zero"), jax.random.key(0))
    with pytest.raises(ValueError, match="no batch"):
        estimate(jax_gaussian, 1.0, [], grid, jax.random.key(0))
