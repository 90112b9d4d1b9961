"""The optimum is known: of Gaussian data N(m, s^2) the path through y at sigma has y(sigma') - m in
proportion to sqrt(s^2 + sigma'^2), so the consistency function is linear in y."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from diffusion.consistency import (
    Curriculum,
    Discretization,
    heun_step,
    level_of_sigma,
    pair_loss,
    pseudo_huber,
)
from diffusion.denoiser import Prediction
from diffusion.schedules import cosine, edm, rectified_flow

M, S = 0.4, 0.5
SCHEDULES = [edm(), rectified_flow(margin=1e-4), cosine()]
LEVELS = Discretization(0.02, 50.0)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def sigma_of(level):
    return jnp.exp(-0.5 * level.logsnr)


def spread(sigma):
    return jnp.sqrt(S**2 + sigma**2)


def teacher(x, level, condition=None):
    sigma = sigma_of(level)
    y = x / level.alpha
    x0 = M + S**2 / (S**2 + sigma**2) * (y - M)
    return Prediction(x0, (y - x0) / sigma)


def exact(x, level, factor=1.0):
    """f(x, level), the end of the path at sigma_min; `factor` spoils it."""
    y = x / level.alpha
    return M + factor * (y - M) * spread(LEVELS.sigma_min) / spread(sigma_of(level))


def path(schedule, index, intervals):
    """Neighbouring points of one path, and their levels."""
    high, low = (
        level_of_sigma(schedule, LEVELS.sigma(index + above, intervals)) for above in (1, 0)
    )
    y = jnp.linspace(-2.0, 2.0, len(index)) * spread(sigma_of(high)) + M
    y_low = M + (y - M) * spread(sigma_of(low)) / spread(sigma_of(high))
    return high.alpha * y, low.alpha * y_low, high, low


def loss_of(factor, schedule, c=0.03):
    index = jnp.arange(9)
    x_high, x_low, high, low = path(schedule, index, 9)
    losses, squares = pair_loss(
        lambda x, level: exact(x, level, factor), x_high, x_low, high, low, index == 0, c
    )
    return losses.sum(), squares


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_exact_function_has_no_loss_and_no_gradient(schedule):
    loss, squares = loss_of(1.0, schedule)
    assert loss < 1e-20
    assert squares.max() < 1e-20
    gradient = jax.grad(lambda factor: loss_of(factor, schedule)[0])
    assert abs(gradient(1.0)) < 1e-5
    assert gradient(1.1) > 1e-2
    assert gradient(0.9) < -1e-2


def test_a_constant_is_no_solution_for_the_boundary():
    """It has no loss between levels, but f(x, sigma_min) = x holds it."""
    index = jnp.arange(9)
    x_high, x_low, high, low = path(SCHEDULES[0], index, 9)
    constant = lambda x, level: 0.0 * x + M  # noqa: E731
    losses, _ = pair_loss(constant, x_high, x_low, high, low, index == 0, 0.03)
    assert losses[0] > 0.1
    assert np.all(losses[1:] == 0)


def test_the_target_is_not_differentiated():
    x_high, x_low, high, low = path(SCHEDULES[0], jnp.arange(1, 9), 9)

    def loss(a, b):
        def f(x, level):
            return jnp.where(jnp.all(x == x_low), b, a) * exact(x, level)

        off = jnp.zeros(8, bool)
        return pair_loss(f, x_high, x_low, high, low, off, 0.03)[0].sum()

    assert jax.grad(loss, 0)(1.1, 1.0) != 0
    assert jax.grad(loss, 1)(1.1, 1.0) == 0


def gaussian_points(count=12):
    """(data, noise, weight) of a product rule of Gauss and Hermite."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    data, noise = np.meshgrid(nodes, nodes)
    weight = np.outer(weights, weights) / weights.sum() ** 2
    return M + S * data.ravel(), noise.ravel(), weight.ravel()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("index", [1, 5, 8])
def test_consistency_training_has_its_own_optimum_at_finite_steps(schedule, index):
    """With shared data and noise the best slope a of f = m + a (y - m) above a given one b is
    b (s^2 + sigma sigma') / (s^2 + sigma^2), of the squared distance (c large)."""
    data, noise, weight = gaussian_points()
    indices = jnp.full(len(data), index)
    high, low = (level_of_sigma(schedule, LEVELS.sigma(indices + k, 9)) for k in (1, 0))
    x_high, x_low = (level.alpha * data + level.sigma * noise for level in (high, low))
    sigma, sigma_low = sigma_of(high)[0], sigma_of(low)[0]
    below = 0.7
    best = below * (S**2 + sigma * sigma_low) / (S**2 + sigma**2)

    def loss(a):
        def f(x, level):
            slope = jnp.where(level.logsnr == high.logsnr, a, below)
            return M + slope * (x / level.alpha - M)

        # Every point is an example of one pixel.
        return weight @ pair_loss(f, x_high, x_low, high, low, indices < 0, 1e4)[0]

    gradient = jax.grad(loss)
    scale = abs(gradient(1.3 * best))
    assert scale > 0
    assert abs(gradient(best)) < 1e-5 * scale


def test_and_that_optimum_is_the_paths_end_in_the_limit():
    errors = []
    for count in (40, 80, 160):
        sigma = np.asarray(LEVELS.sigma(np.arange(count + 1), count))
        low, high = sigma[:-1], sigma[1:]
        slope = np.prod((S**2 + high * low) / (S**2 + high**2))
        exact_slope = float(spread(LEVELS.sigma_min) / spread(LEVELS.sigma_max))
        errors.append(abs(slope / exact_slope - 1))
    np.testing.assert_allclose(np.log2(errors[:-1]) - np.log2(errors[1:]), 1.0, atol=0.1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_heuns_step_is_on_the_path_to_second_order(schedule):
    errors = []
    for ratio in (0.2, 0.1, 0.05):
        now, after = (level_of_sigma(schedule, jnp.array([s])) for s in (1.0, 1.0 - ratio))
        x = now.alpha * jnp.array([1.7])
        found = heun_step(teacher, x, now, after) / after.alpha
        errors.append(abs(M + (1.7 - M) * spread(1.0 - ratio) / spread(1.0) - found)[0])
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(orders, 3.0, atol=0.25)


def test_curriculum_doubles_up_to_its_end():
    curriculum = Curriculum(10, 1280, 50)
    found = [int(curriculum.intervals(jnp.int32(k))) for k in (0, 49, 50, 149, 349, 350, 10**6)]
    assert found == [10, 10, 20, 40, 640, 1280, 1280]
    assert int(Curriculum(10, 50, 1).intervals(jnp.int32(3))) == 50
    assert int(Curriculum(10, 50, 0).intervals(jnp.int32(0))) == 50
    with pytest.raises(ValueError, match="start=20, end=10"):
        Curriculum(20, 10, 1)


def test_levels_are_karras_and_the_draws_have_the_papers_probabilities():
    discretization, count = Discretization(0.002, 80.0), 20
    sigma = discretization.sigma(np.arange(count + 1), count)
    np.testing.assert_allclose(sigma[[0, -1]], [0.002, 80.0], rtol=1e-12)
    np.testing.assert_allclose(np.diff(sigma ** (1 / 7), 2), 0.0, atol=1e-12)
    edges = erf((np.log(sigma) + 1.1) / (2.0 * np.sqrt(2.0)))
    expected = np.diff(edges) / (edges[-1] - edges[0])
    u = (jnp.arange(200_000) + 0.5) / 200_000
    index = discretization.draw(u, jnp.int32(count), -1.1, 2.0)
    found = np.bincount(np.asarray(index), minlength=count) / 200_000
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_pseudo_huber():
    d = jnp.array([[3.0, 4.0], [0.0, 0.0], [3e-6, 4e-6]])
    np.testing.assert_allclose(pseudo_huber(d, 0.01)[0], np.sqrt(25.0001) - 0.01, rtol=1e-12)
    # Without the loss of digits of the difference.
    np.testing.assert_allclose(pseudo_huber(d, 0.01)[1:], [0.0, 12.5e-10], rtol=1e-6)
    assert np.all(np.isfinite(jax.grad(lambda d: pseudo_huber(d, 0.01).sum())(d)))
