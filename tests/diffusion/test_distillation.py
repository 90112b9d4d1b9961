import numpy as np
import pytest

from diffusion import GRIDS
from diffusion.distillation import ddim_step, halving_levels, two_step_target
from diffusion.levels import NoiseLevel
from diffusion.schedules import cosine, rectified_flow, shifted_cosine
from tests.diffusion.solvers.walk import GAUSSIAN, MIXTURE

SCHEDULES = [cosine(timesteps=64), shifted_cosine(), rectified_flow(margin=0.01)]
X = np.linspace(-2.0, 2.0, 7)


def at(levels, k):
    return NoiseLevel(*(field[k] for field in levels))


def teacher(denoise):
    return lambda x, level, condition: denoise(x, level)


@pytest.mark.parametrize("denoise", [GAUSSIAN, MIXTURE])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("index", [2, 6, 8])
def test_one_step_of_the_target_leads_where_two_of_the_teacher_do(schedule, denoise, index):
    levels = halving_levels(schedule, 4)
    now, middle, after = (at(levels, index - k) for k in range(3))
    x0, eps = two_step_target(teacher(denoise), X, now, middle, after)
    np.testing.assert_allclose(now.alpha * x0 + now.sigma * eps, X, rtol=1e-10, atol=1e-12)
    first = denoise(X, now)
    between = middle.alpha * first.x0 + middle.sigma * first.eps
    second = denoise(between, middle)
    expected = after.alpha * second.x0 + after.sigma * second.eps
    np.testing.assert_allclose(ddim_step(x0, eps, after), expected, rtol=1e-10, atol=1e-12)
    assert np.abs(x0 - first.x0).max() > 1e-3
    if index == 2:
        # The step to clean data ends on the second prediction itself.
        np.testing.assert_allclose(x0, second.x0, rtol=1e-10, atol=1e-12)


def test_a_teacher_of_straight_paths_has_itself_as_target():
    """Data of one point: its paths are straight in x0 and eps, so no number of steps matters."""
    point = lambda x, level: GAUSSIAN(x, level)._replace(  # noqa: E731
        x0=0.4 + 0 * x, eps=(x - 0.4 * level.alpha) / level.sigma
    )
    levels = halving_levels(rectified_flow(margin=0.01), 2)
    x0, _ = two_step_target(teacher(point), X, *(at(levels, 4 - k) for k in range(3)))
    np.testing.assert_allclose(x0, 0.4, rtol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 8])
@pytest.mark.parametrize(
    ("schedule", "grid"), [(SCHEDULES[0], "trailing"), (SCHEDULES[2], "uniform")]
)
def test_the_student_steps_where_the_sampler_does(schedule, grid, steps):
    levels = halving_levels(schedule, steps)
    visited = GRIDS[grid]()(schedule, steps, "zero")
    for field, expected in zip(levels, visited, strict=True):
        np.testing.assert_allclose(field[::2][::-1], expected, rtol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_student_is_the_next_ones_teacher(schedule):
    np.testing.assert_array_equal(
        halving_levels(schedule, 4).logsnr[::2], halving_levels(schedule, 2).logsnr
    )
    assert halving_levels(schedule, 4).sigma[0] == 0.0


def test_an_index_cannot_be_halved_where_it_is_odd():
    with pytest.raises(ValueError, match="steps=48: twice as many must divide the schedule's 64"):
        halving_levels(SCHEDULES[0], 48)
