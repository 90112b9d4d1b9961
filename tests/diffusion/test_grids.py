import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion import GRIDS
from diffusion.grids import respaced, uniform
from diffusion.schedules import cosine, edm, linear, rectified_flow

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden/diffusion/openai.npz")
SCHEDULES = [linear(), cosine(timesteps=400), rectified_flow(), edm()]


@pytest.mark.parametrize("timesteps", [1000, 4000])
@pytest.mark.parametrize("steps", [2, 3, 10, 21, 25, 50, 100, 250])
def test_respaced_visits_openais_indices(timesteps, steps):
    grid = respaced()(linear(timesteps=timesteps), steps, "zero")
    np.testing.assert_array_equal(grid.t[::-1][1:], GOLDEN[f"respaced/{timesteps}/{steps}"])


def test_respaced_10_of_1000():
    grid = respaced()(linear(), 10, "zero")
    np.testing.assert_array_equal(grid.t, [999, 888, 777, 666, 555, 444, 333, 222, 111, 0, -1])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("last_step", ["zero", "sigma_min"])
@given(steps=st.integers(1, 60))
def test_a_grid_falls_from_noise_to_its_end(schedule, kind, last_step, steps):
    if kind == "respaced" and schedule.num_timesteps is None:
        with pytest.raises(ValueError, match=r"'respaced'.*Use grid 'uniform'"):
            respaced()(schedule, steps, last_step)
        return
    grid = GRIDS[kind]()(schedule, steps, last_step)
    low, high = schedule.t_range
    assert all(field.shape == (steps + 1,) and field.dtype == np.float64 for field in grid)
    assert np.all(np.diff(grid.logsnr) > 0)
    assert np.all(np.isfinite(grid.logsnr[:-1]))
    assert grid.t[0] == high
    if last_step == "zero":
        assert (grid.logsnr[-1], grid.alpha[-1], grid.sigma[-1]) == (np.inf, 1.0, 0.0)
        assert grid.t[-1] == schedule.data.t
    else:
        assert grid.t[-1] == low
        assert grid.sigma[-1] > 0.0


def test_uniform_on_edm_is_karras_grid_with_zero_appended():
    sigma = uniform()(edm(), 18, "zero").sigma
    i = np.arange(18)
    karras = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sigma, [*karras, 0.0], rtol=1e-12)


def test_uniform_on_a_flow_takes_equal_steps_to_the_data():
    """Trap: data appended after an end at t = margin would make the last step trivial."""
    t = uniform()(rectified_flow(), 4, "zero").t
    np.testing.assert_allclose(t, [1.0, 0.75, 0.5, 0.25, 0.0], atol=2e-5)


def test_all_steps_of_a_chain():
    grid = respaced()(linear(timesteps=100), 100, "zero")
    np.testing.assert_array_equal(grid.t, np.arange(99, -2, -1))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((linear(), 0, "zero"), "steps=0"),
        ((linear(), 1001, "zero"), "steps=1001.*has 1000"),
        ((linear(), 1000, "sigma_min"), "visits 1001 levels"),
        ((linear(), 10, "sigma_max"), "last_step='sigma_max'.*did you mean 'sigma_min'"),
    ],
)
def test_impossible_grids(args, message):
    with pytest.raises(ValueError, match=message):
        respaced()(*args)
