"""Measured orders of convergence, against exact solutions of the probability-flow ODE."""

import functools

import numpy as np
import pytest

from diffusion.levels import NoiseLevel
from diffusion.schedules import linear, rectified_flow
from diffusion.solvers import (
    ddim,
    deis,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s,
    dpmpp_3m,
    dpmpp_3m_sde,
    dpmpp_3s,
    euler,
    heun,
    lms,
    pndm,
    rk4,
    unipc,
)
from tests.diffusion.solvers.walk import GAUSSIAN, MIXTURE, walk

SCHEDULES = {"vp": linear(), "flow": rectified_flow()}
NOISE = np.linspace(-2.0, 2.0, 9)
# All steps of full order: the last ones are not to be tapered.
FREE = {"lower_order_final": False}
ORDERS = [
    (ddim(), 1),
    (euler(), 1),
    (heun(), 2),
    (heun(space="flow"), 2),
    (rk4(), 4),
    (rk4(space="flow"), 4),
    (dpmpp_2s(), 2),
    (dpmpp_2s("eps"), 2),
    (dpmpp_3s(), 3),
    (dpmpp_3s("eps"), 3),
    (dpmpp_2m("midpoint", **FREE), 2),
    (dpmpp_2m("exact", **FREE), 2),
    (dpmpp_3m(**FREE), 3),
    (dpmpp_2m_sde(eta=0.0), 2),
    (dpmpp_3m_sde(eta=0.0), 3),
    *((deis(order, **FREE), order) for order in (2, 3, 4)),
    *((lms(order), order) for order in (2, 3, 4)),
    *((unipc(p, variant, **FREE), p + 1) for p in (1, 2, 3) for variant in ("bh1", "bh2", "exact")),
    *((unipc(p, corrector=False, **FREE), p) for p in (1, 2, 3)),
]


def name(value):
    return repr(value) if not isinstance(value, int) else str(value)


def grid_in_logsnr(schedule, steps, low=-6.0, high=6.0):
    """Even steps in logsnr after doubling ones, so small that the low orders there cost nothing."""
    h = (high - low) / steps
    growing = h**2 / 8 * 2.0 ** np.arange(np.log2(8 / h))
    start = low + np.cumsum(np.append(0.0, growing))
    return schedule.level_of_logsnr(np.append(start[:-1], np.linspace(start[-1], high, steps)))


@functools.cache
def solution(which, denoise, low, high):
    """The mixture's flow by 2000 steps of rk4; the Gaussian's in closed form."""
    schedule = SCHEDULES[which]
    grid = schedule.level_of_logsnr(np.linspace(low, high, 2001 if denoise is MIXTURE else 2))
    start = grid.sigma[0] * NOISE
    if denoise is MIXTURE:
        return walk(rk4(space="flow"), grid, schedule, denoise, start)[-1]
    deviation = np.sqrt(grid.alpha**2 * 0.3 + grid.sigma**2)
    return grid.alpha[-1] * 0.4 + deviation[-1] / deviation[0] * (start - grid.alpha[0] * 0.4)


def error(solver, which, denoise, grid):
    x = walk(solver, grid, SCHEDULES[which], denoise, grid.sigma[0] * NOISE)[-1]
    return np.max(abs(x - solution(which, denoise, grid.logsnr[0], grid.logsnr[-1])))


def order(solver, which, denoise, grids):
    coarse, fine = (error(solver, which, denoise, grid) for grid in grids)
    return np.log2(coarse / fine)


@pytest.mark.parametrize(("solver", "expected"), ORDERS, ids=name)
def test_order_on_a_mixture(solver, expected):
    # Two parts of this one's error cancel on coarser grids.
    steps = 640 if solver == deis(3, **FREE) else 160
    grids = [grid_in_logsnr(SCHEDULES["flow"], n) for n in (steps, 2 * steps)]
    assert order(solver, "flow", MIXTURE, grids) == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize(("solver", "expected"), ORDERS, ids=name)
def test_order_on_a_gaussian(solver, expected):
    """Where an error changes its sign a single ratio says nothing: at least the order, then."""
    grids = [grid_in_logsnr(SCHEDULES["vp"], steps) for steps in (80, 160)]
    measured = order(solver, "vp", GAUSSIAN, grids)
    assert measured > expected - 0.2
    if isinstance(solver, type(heun()) | type(dpmpp_2s()) | type(ddim())):
        assert measured == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize("start", ["runge_kutta", "multistep"])
@pytest.mark.parametrize("denoise", [GAUSSIAN, MIXTURE])
@pytest.mark.parametrize("which", SCHEDULES)
def test_pndm_is_of_order_two(start, denoise, which):
    """Four values, but fixed weights and DDIM's rule: second order, as its paper says."""
    schedule = SCHEDULES[which]
    scale = 1.0 if which == "flow" else 999.0
    grids = [schedule.level(scale * np.linspace(0.9, 0.1, steps + 1)) for steps in (120, 240)]
    assert order(pndm(start), which, denoise, grids) == pytest.approx(2.0, abs=0.2)


def test_the_published_3m_is_of_order_two():
    grids = [grid_in_logsnr(SCHEDULES["flow"], steps) for steps in (320, 640)]
    reference = dpmpp_3m("reference", **FREE)
    assert order(reference, "flow", MIXTURE, grids) < 2.5
    errors = [error(solver, "flow", MIXTURE, grids[1]) for solver in (reference, dpmpp_3m(**FREE))]
    assert errors[0] > 5 * errors[1]


def test_a_walk_up_and_down_again_comes_back():
    """DDIM's inversion: the error of both ways falls with the steps, at each solver's order."""
    for solver, expected in ((ddim(), 1), (heun(), 2), (dpmpp_2m(**FREE), 2)):
        errors = []
        for steps in (100, 200):
            down = grid_in_logsnr(SCHEDULES["vp"], steps)
            up = NoiseLevel(*(field[::-1] for field in down))
            x0 = np.linspace(-1.0, 1.0, 9)
            noise = walk(solver, up, SCHEDULES["vp"], MIXTURE, x0)[-1]
            back = walk(solver, down, SCHEDULES["vp"], MIXTURE, noise)[-1]
            errors.append(np.max(abs(back - x0)))
        assert np.log2(errors[0] / errors[1]) > expected - 0.3
