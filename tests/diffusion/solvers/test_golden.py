"""Whole trajectories of k-diffusion, dpm-solver and diffusers (make_solvers.py)."""

import math
import pathlib

import numpy as np
import pytest

from diffusion import Prediction
from diffusion.grids import leading
from diffusion.levels import NoiseLevel, alpha_sigma
from diffusion.schedules import edm, linear, rectified_flow
from diffusion.solvers import (
    deis,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s,
    dpmpp_3m,
    dpmpp_3m_sde,
    dpmpp_3s,
    euler,
    euler_ancestral,
    heun,
    lms,
    pndm,
    unipc,
)
from tests.diffusion.solvers.walk import walk
from tests.golden.diffusion.toy import sigma_lists, x0_of

GOLDEN = np.load(pathlib.Path(__file__).parents[2] / "golden/diffusion/solvers.npz")
KEPT = (1, 2, 3, 5, 8)
SIGMAS = sigma_lists(np, linear().alpha(np.arange(1000)) ** 2)
# The scaling that goes with each of these lists.
SCALING = {"line": "vp", "karr": "ve", "flow": "flow"}
SCHEDULES = {"vp": linear(), "ve": edm(), "flow": rectified_flow()}


def denoise(x, level):
    y, sigma = x / level.alpha, np.exp(-0.5 * level.logsnr)
    x0 = x0_of(np, y, sigma)
    return Prediction(x0, (y - x0) / sigma)


def on(sigmas, scaling):
    """A grid of these sigma / alpha."""
    with np.errstate(divide="ignore"):
        logsnr = -2.0 * np.log(sigmas)
    return NoiseLevel(SCHEDULES[scaling].t_of_logsnr(logsnr), logsnr, *alpha_sigma(logsnr, scaling))


def trajectory(solver, key, scaling, above=False):
    """States y = x / alpha before the steps KEPT and at the end."""
    sigmas = SIGMAS[key][: -1 if above else None]
    grid, schedule = on(sigmas, scaling), SCHEDULES[scaling]
    calls = len(solver.plan(grid, schedule).now.t)
    each = math.ceil(calls / (len(sigmas) - 1))
    # One call of a step adds noise, the first (churn) or the last.
    noises = np.repeat(GOLDEN[f"{key}/noise"], each, axis=0)[:calls]
    x = walk(solver, grid, schedule, denoise, grid.sigma[0] * GOLDEN[f"{key}/start"], noises)
    alpha = [*grid.alpha[list(KEPT)], grid.alpha[-1]]
    return x[[*(each * k for k in KEPT), -1]] / np.reshape(alpha, (-1, 1, 1))


def compare(states, golden):
    """The golden file has float32's digits, of states of up to 300."""
    states = states[-len(golden) :]
    np.testing.assert_allclose(states, golden, rtol=1e-6, atol=1e-6)


CHURN = {"s_churn": 5.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.007}
FREE = {"lower_order_final": False}
TO_DATA = {
    "euler": euler(),
    "euler_churn": euler(**CHURN),
    "euler_ancestral": euler_ancestral(),
    "euler_ancestral_0.5": euler_ancestral(0.5),
    "heun": heun(),
    "heun_churn": heun(**CHURN),
    "lms": lms(),
    "dpmpp_2s": dpmpp_2s(),
    "dpmpp_2s_ancestral": dpmpp_2s(eta=1.0),
    "dpmpp_2s_ancestral_0.5": dpmpp_2s(eta=0.5),
    "euler_flow": euler(),
    "heun_flow": heun(space="flow"),
    "dpmpp_2m": dpmpp_2m(**FREE),
    "dpmpp_2m_taper": dpmpp_2m(),
    "dpmpp_2m_exact": dpmpp_2m("exact"),
    "dpmpp_3m_reference": dpmpp_3m("reference"),
    "dpmpp_2m_sde": dpmpp_2m_sde(),
    "dpmpp_2m_sde_0.5": dpmpp_2m_sde(0.5),
    "dpmpp_2m_sde_exact": dpmpp_2m_sde(coefficients="exact"),
    "dpmpp_3m_sde_reference": dpmpp_3m_sde(coefficients="reference"),
    **{f"unipc_{p}_bh2": unipc(p, "bh2") for p in (1, 2, 3)},
    **{f"unip_{p}": unipc(p, corrector=False) for p in (1, 2, 3)},
}
ABOVE = {
    "dpm_2s": dpmpp_2s("eps"),
    "dpm_3s": dpmpp_3s("eps"),
    "dpmpp_2s_authors": dpmpp_2s(),
    "dpmpp_3s": dpmpp_3s(),
    **{f"deis_{p}": deis(p) for p in (1, 2, 3)},
    **{f"unipc_{p}_bh1": unipc(p, "bh1") for p in (1, 2, 3)},
}


@pytest.mark.parametrize("key", SIGMAS)
@pytest.mark.parametrize("name", TO_DATA)
def test_trajectories_to_clean_data(name, key):
    compare(trajectory(TO_DATA[name], key, SCALING[key[:4]]), GOLDEN[f"{key}/{name}"])


@pytest.mark.parametrize("key", SIGMAS)
@pytest.mark.parametrize("name", ABOVE)
def test_trajectories_that_end_above_it(name, key):
    x = trajectory(ABOVE[name], key, SCALING[key[:4]], above=True)
    compare(x, GOLDEN[f"{key}/{name}"])


@pytest.mark.parametrize("steps", [10, 25])
@pytest.mark.parametrize("start", ["runge_kutta", "multistep"])
def test_pndm_of_diffusers(start, steps):
    key = f"linear/{steps}"
    grid = leading()(linear(), steps, "zero")
    x = walk(pndm(start), grid, linear(), denoise, grid.sigma[0] * GOLDEN[f"{key}/start"])
    golden = GOLDEN[f"{key}/{'pndm' if start == 'runge_kutta' else 'plms'}"]
    assert len(x) - 1 == steps + (9 if start == "runge_kutta" else 1)
    compare(x[[*KEPT, -1]], golden)


# --- where they are wrong


@pytest.mark.parametrize("key", ["karras/10", "linear/25"])
def test_diffusers_third_order_sde_has_a_wrong_sign(key):
    """Trap: its coefficient of the curvature is (phi - 1/2) where algebra gives (phi + 1/2)."""
    golden = GOLDEN[f"{key}/dpmpp_3m_sde_diffusers"]
    for coefficients in ("exact", "reference"):
        ours = trajectory(dpmpp_3m_sde(coefficients=coefficients), key, "vp")
        # The first two steps have no curvature.
        np.testing.assert_allclose(ours[0], golden[0], rtol=1e-6, atol=1e-6)
        assert np.max(abs(ours[3:-1] - golden[3:-1])) > 1e-3


@pytest.mark.parametrize("key", ["karras/10", "linear/25"])
def test_published_codes_halve_the_curvature_of_3m(key):
    """Trap: D2 is h^2 f'' / 2 where h^2 f'' belongs; see test_order for what that costs."""
    for make, name in ((dpmpp_3m, "dpmpp_3m"), (dpmpp_3m_sde, "dpmpp_3m_sde")):
        exact = trajectory(make(coefficients="exact"), key, "vp")
        assert np.max(abs(exact[3:-1] - GOLDEN[f"{key}/{name}_reference"][3:-1])) > 1e-4
