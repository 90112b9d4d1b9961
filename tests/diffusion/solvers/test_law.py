"""The exact law of what stochastic solvers sample, where every step is affine."""

import numpy as np
import pytest

from diffusion.schedules import linear, rectified_flow
from diffusion.solvers import (
    at,
    ddim,
    dpmpp_2m_sde,
    dpmpp_2s,
    dpmpp_3m_sde,
    dpmpp_3s,
    euler,
    heun,
)
from tests.diffusion.solvers.walk import law, marginal


@pytest.mark.parametrize(
    ("solver", "expected"),
    [
        (ddim(1.0), 1),
        (euler(s_churn=20.0), 1),
        (heun(s_churn=20.0), 2),
        (dpmpp_2m_sde(), 2),
        (dpmpp_2m_sde(0.3), 2),
        (dpmpp_2m_sde(coefficients="exact"), 2),
        (dpmpp_3m_sde(), 2),
        (dpmpp_3m_sde(0.3), 2),
        (dpmpp_2s(eta=1.0), 2),
        (dpmpp_2s("eps", eta=0.5), 2),
        (dpmpp_3s(eta=1.0), 3),
    ],
    ids=repr,
)
def test_order_of_the_law_of_stochastic_solvers(solver, expected):
    """N(0.4, 0.3), from its noised law to its noised law: the variance converges.

    The mean is exact. Three values do not make an SDE's third order: no polynomial has the noise
    between them.
    """
    # That no solver sees the scaling is another test.
    schedule, errors = rectified_flow(margin=0.01), []
    for steps in (100, 200):
        grid = schedule.level_of_logsnr(np.linspace(-9.0, 7.0, steps + 1))
        mean, variance = law(solver, grid, schedule)
        exact = marginal(at(grid, -1))
        assert mean == pytest.approx(exact[0], rel=1e-10)
        errors.append(abs(variance / exact[1] - 1.0))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(expected, abs=0.2)


def test_exact_curvature_halves_the_error_of_3m_sde():
    grid = linear().level_of_logsnr(np.linspace(-9.0, 7.0, 101))
    exact = marginal(at(grid, -1))[1]
    error = {
        rule: abs(law(dpmpp_3m_sde(coefficients=rule), grid, linear())[1] / exact - 1.0)
        for rule in ("exact", "reference")
    }
    assert error["exact"] < 0.6 * error["reference"]
