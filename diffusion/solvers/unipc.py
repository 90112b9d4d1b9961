"""UniPC (Zhao et al. 2023): multistep prediction, corrected with the call that comes anyway."""

import dataclasses

from diffusion.levels import NoiseLevel
from diffusion.options import check_option
from diffusion.schedules import Schedule
from diffusion.solvers import exponential
from diffusion.solvers.base import at, pairs
from diffusion.solvers.linear import X0, Linear, LinearPlan, Weights, row
from diffusion.solvers.multistep import check_order, orders

VARIANTS = {"bh1": "bh1", "bh2": "midpoint", "exact": "exact"}


@dataclasses.dataclass(frozen=True)
class UniPC(Linear):
    """Polynomials in lambda through values of x0, as one call a step.

    The call at a predicted x corrects that x, before the next prediction starts from it; the value
    is not computed anew. The last x has no call and stays as predicted.
    """

    order: int
    variant: str
    corrector: bool
    lower_order_final: bool

    def __post_init__(self):
        check_order("unipc", self.order, 3)
        check_option("unipc: variant", self.variant, tuple(VARIANTS))

    @property
    def stochastic(self) -> bool:
        """Never."""
        return False

    @property
    def memory(self) -> int:
        """The values that the corrector uses beside the newest."""
        return self.order

    def rows(self, grid: NoiseLevel, schedule: Schedule) -> list[LinearPlan]:
        """A row for each step: base is the corrected x."""
        pairs(grid, "unipc")
        rule = VARIANTS[self.variant]
        by_step = orders(grid, self.order, self.lower_order_final)
        out = []
        for k, order in enumerate(by_step):
            now, after = at(grid, k), at(grid, k + 1)
            corrected = self.weights(x=1.0)
            if self.corrector and k > 0:
                corrected = self._corrected(grid, k - 1, by_step[k - 1], rule)
            step = exponential.step(now, after, "x0")
            w = step.weights("x0", exponential.nodes(grid, k, order), rule)
            x = self.weights(value=w[0], values=dict(enumerate(w[1:], 1)))
            out.append(row(now, after, X0, step.x_coef * corrected + x, corrected))
        return out

    def _corrected(self, grid: NoiseLevel, k: int, order: int, rule: str) -> Weights:
        """The end of step k from its corrected start, with the value at its end as a node."""
        step = exponential.step(at(grid, k), at(grid, k + 1), "x0")
        if step.h == float("inf"):
            return self.weights(x=1.0)
        w = step.weights("x0", [1.0, *exponential.nodes(grid, k, order)], rule)
        return self.weights(base=step.x_coef, value=w[0], values=dict(enumerate(w[1:], 1)))


def unipc(
    order: int = 3, variant: str = "bh2", corrector: bool = True, lower_order_final: bool = True
) -> UniPC:
    """UniPC-p of order p + 1 for p = 1, 2, 3, or without corrector UniP-p of order p; N calls.

    variant is the B(h) that weighs straight lines ('bh1' is h, 'bh2' exp(h) - 1), or 'exact', the
    integral of the line. lower_order_final lowers the last steps to the number of steps left.
    """
    return UniPC(order, variant, corrector, lower_order_final)
