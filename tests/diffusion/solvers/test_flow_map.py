import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import Prediction, sample
from diffusion.grids import karras, uniform
from diffusion.levels import NoiseLevel
from diffusion.schedules import cosine, edm, rectified_flow
from diffusion.solvers import consistency, flow_map
from tests.diffusion.solvers.walk import rows, walk

M, S = 0.3, 0.6
FLOW = rectified_flow(margin=0.01)
X = np.linspace(-2.0, 2.0, 5)


def spread(t):
    return np.sqrt((1 - t) ** 2 * S**2 + t**2)


def gaussian_map(x, level, step):
    """The exact mean velocity over a step, as a prediction."""
    t, r = level.t, level.t - step
    end = (1 - r) * M + (x - (1 - t) * M) * spread(r) / spread(t)
    u = (x - end) / step
    return Prediction(x - t * u, x + (1 - t) * u)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_an_exact_flow_map_leaps_along_the_path_in_any_number_of_steps(steps):
    grid = uniform()(FLOW, steps, "zero")
    found = walk(flow_map(), grid, FLOW, gaussian_map, X)
    expected = (1 - grid.t)[:, None] * M + np.outer(spread(grid.t), (X - 0.01 * M) / spread(0.99))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    assert len(rows(flow_map().plan(grid, FLOW))) == steps


def test_the_denoiser_is_told_the_step_of_every_sample():
    told = []

    def denoiser(x, level, condition):
        told.append({name: value.shape for name, value in condition.items()})
        return Prediction(x * condition["step"][:, None], x)

    plan = flow_map().plan(uniform()(FLOW, 2, "zero"), FLOW)
    keys = jax.random.split(jax.random.key(0), 3)
    out = sample(denoiser, flow_map(), plan, keys, (4,), {"label": jnp.zeros(3, jnp.int32)})
    assert told[0] == {"label": (3,), "step": (3,)}
    start = np.stack([0.99 * jax.random.normal(jax.random.fold_in(k, 0), (4,)) for k in keys])
    middle = (1 - 0.495) * 0.495 * start + 0.495 * start
    np.testing.assert_allclose(out, 0.495 * middle, rtol=1e-5)


def test_flow_maps_are_of_straight_paths():
    with pytest.raises(ValueError, match="scaling is 'vp'; flow maps are trained on straight"):
        flow_map().plan(uniform()(cosine(), 2, "zero"), cosine())


@pytest.mark.parametrize("schedule", [edm(), FLOW])
def test_a_consistency_model_is_noised_again_to_each_level(schedule):
    grid = karras(sigma_min=0.05, sigma_max=50.0)(schedule, 3, "zero")
    noises = np.random.default_rng(0).normal(size=(3, 5))

    def f(x, level):
        return Prediction(np.tanh(x) + level.sigma, None)

    found = walk(consistency(), grid, schedule, f, X, noises)
    x = X
    for k in range(3):
        level, after = (NoiseLevel(*(field[k + i] for field in grid)) for i in range(2))
        x = after.alpha * (np.tanh(x) + level.sigma) + after.sigma * noises[k]
        np.testing.assert_allclose(found[k + 1], x, rtol=1e-12)
    np.testing.assert_array_equal(grid.sigma[-1], 0.0)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_an_exact_consistency_function_keeps_the_law(steps):
    """Linear in x and noise, so the law is the data's from the noised law of the first level."""
    schedule = edm()
    grid = karras(sigma_min=0.1, sigma_max=50.0)(schedule, steps, "zero")

    def f(x, level):
        return Prediction(M + (x - M) * S / np.sqrt(S**2 + level.sigma**2), None)

    first = np.sqrt(S**2 + grid.sigma[0] ** 2)
    basis = np.eye(steps + 1)
    none = walk(consistency(), grid, schedule, f, np.array([M]))[-1, 0]
    shifts = [
        walk(consistency(), grid, schedule, f, np.array([M + first * b[0]]), b[1:, None])[-1, 0]
        for b in basis
    ]
    np.testing.assert_allclose(none, M, rtol=1e-12)
    np.testing.assert_allclose(np.sum((np.array(shifts) - none) ** 2), S**2, rtol=1e-10)
