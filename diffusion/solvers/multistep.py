"""Multistep solvers: one call a step, and the values of the steps before."""

import dataclasses

import numpy as np

from diffusion.levels import NoiseLevel
from diffusion.options import check_option
from diffusion.schedules import Schedule
from diffusion.solvers import exponential
from diffusion.solvers.base import at, pairs
from diffusion.solvers.integrals import interpolation
from diffusion.solvers.linear import EPS, Linear, LinearPlan, row


def check_order(name: str, order: int, highest: int) -> None:
    """Raise ValueError unless order is one of 1..highest."""
    if order not in range(1, highest + 1):
        raise ValueError(f"{name}: order={order} must be one of 1 to {highest}")


def orders(grid: NoiseLevel, highest: int, taper: bool) -> list[int]:
    """The order of each step: what is remembered so far, 1 where a step is infinitely long.

    taper lowers the last steps to the number of steps left. A level of pure noise is no node.
    """
    steps = len(grid.logsnr) - 1
    out = []
    for k in range(steps):
        nodes = np.isfinite(grid.logsnr[max(0, k - highest + 1) : k + 1]).sum()
        order = min(highest, nodes, steps - k if taper else highest)
        out.append(int(order) if np.isfinite(np.diff(grid.logsnr[k : k + 2])) else 1)
    return out


@dataclasses.dataclass(frozen=True)
class ExponentialMultistep(Linear):
    """Polynomials in lambda through the last values of x0 or eps, integrated over the step."""

    name: str
    prediction: str
    order: int
    eta: float
    coefficients: str
    lower_order_final: bool

    def __post_init__(self):
        if self.eta < 0.0:
            raise ValueError(f"{self.name}: eta={self.eta} must be at least 0")

    @property
    def stochastic(self) -> bool:
        """For eta above 0."""
        return self.eta > 0.0

    @property
    def memory(self) -> int:
        """All values but the newest."""
        return self.order - 1

    def rows(self, grid: NoiseLevel, schedule: Schedule) -> list[LinearPlan]:
        """A row for each step."""
        kind = self.prediction
        pairs(grid, self.name, self.stochastic, divides_by_alpha=kind == "eps")
        # With so few steps the last ones are long (Lu et al. 2022b, appendix).
        taper = self.lower_order_final and len(grid.logsnr) - 1 < 15
        out = []
        for k, order in enumerate(orders(grid, self.order, taper)):
            now, after = at(grid, k), at(grid, k + 1)
            if after.sigma == 0.0:
                out.append(self.to_data(now, after))
                continue
            step = exponential.step(now, after, kind, self.eta)
            w = step.weights(kind, exponential.nodes(grid, k, order), self.coefficients)
            x = self.weights(x=step.x_coef, value=w[0], values=dict(enumerate(w[1:], 1)))
            out.append(row(now, after, exponential.VALUE[kind], x, self.weights(), step.noise_std))
        return out


def dpmpp_2m(coefficients: str = "midpoint", lower_order_final: bool = True) -> Linear:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2), or the 'exact' integral of its line.

    lower_order_final: with less than 15 steps the last ones are of lower order, as the authors
    advise; a step to clean data always is of order 1.
    """
    check_option("dpmpp_2m: coefficients", coefficients, ("midpoint", "exact"))
    return ExponentialMultistep("dpmpp_2m", "x0", 2, 0.0, coefficients, lower_order_final)


def dpmpp_3m(coefficients: str = "exact", lower_order_final: bool = True) -> Linear:
    """DPM-Solver++(3M). 'reference' is the published code, whose curvature is half of what it is.

    That code is of order 2; it also takes the second step by the midpoint rule.
    """
    check_option("dpmpp_3m: coefficients", coefficients, ("exact", "reference"))
    return ExponentialMultistep("dpmpp_3m", "x0", 3, 0.0, coefficients, lower_order_final)


def dpmpp_2m_sde(eta: float = 1.0, coefficients: str = "midpoint") -> Linear:
    """DPM-Solver++(2M) of the reverse SDE with eta times its noise; eta = 0 is the ODE's."""
    check_option("dpmpp_2m_sde: coefficients", coefficients, ("midpoint", "exact"))
    return ExponentialMultistep("dpmpp_2m_sde", "x0", 2, eta, coefficients, False)


def dpmpp_3m_sde(eta: float = 1.0, coefficients: str = "exact") -> Linear:
    """DPM-Solver++(3M) of the reverse SDE; 'reference' is k-diffusion's (half the curvature)."""
    check_option("dpmpp_3m_sde: coefficients", coefficients, ("exact", "reference"))
    rule = "exact" if coefficients == "exact" else "half_curvature"
    return ExponentialMultistep("dpmpp_3m_sde", "x0", 3, eta, rule, False)


def deis(order: int = 3, lower_order_final: bool = True) -> Linear:
    """DEIS log-rho Adams-Bashforth (Zhang & Chen 2023): eps as a polynomial in log(sigma / alpha).

    The same as DPM-Solver's multistep form in eps with exact integrals.
    """
    check_order("deis", order, 4)
    return ExponentialMultistep("deis", "eps", order, 0.0, "exact", lower_order_final)


@dataclasses.dataclass(frozen=True)
class LMS(Linear):
    """eps as a polynomial in rho = sigma / alpha through the last values (Adams-Bashforth)."""

    order: int
    decode: bool

    def __post_init__(self):
        check_order("lms", self.order, 4)

    @property
    def stochastic(self) -> bool:
        """Never."""
        return False

    @property
    def memory(self) -> int:
        """All values but the newest."""
        return self.order - 1

    def rows(self, grid: NoiseLevel, schedule: Schedule) -> list[LinearPlan]:
        """A row for each step; x / alpha grows by the integral of eps over rho, to rho = 0 too."""
        pairs(grid, "lms", divides_by_alpha=True)
        rho = grid.sigma / grid.alpha
        out = []
        for k in range(len(rho) - 1):
            now, after = at(grid, k), at(grid, k + 1)
            if self.decode and after.sigma == 0.0:
                out.append(self.to_data(now, after))
                continue
            h, order = rho[k + 1] - rho[k], min(self.order, k + 1)
            nodes = [(rho[k - j] - rho[k]) / h for j in range(order)]
            # int_0^1 s^k ds: the moments of plain weights.
            w = after.alpha * h * interpolation(nodes, 1.0 / np.arange(1.0, order + 1.0))
            x = self.weights(
                x=after.alpha / now.alpha, value=w[0], values=dict(enumerate(w[1:], 1))
            )
            out.append(row(now, after, EPS, x, self.weights()))
        return out


def lms(order: int = 4, decode: bool = False) -> LMS:
    """Linear multistep in sigma / alpha (k-diffusion's LMS), its integrals exact.

    Its polynomial goes on to clean data; decode=True takes the predicted image there, as others do.
    """
    return LMS(order, decode)
