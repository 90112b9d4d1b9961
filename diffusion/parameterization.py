"""What a network's output means: eps, x0, v, flow or EDM's F.

Each is a fixed linear combination of data and noise, raw = a x0 + b eps. With z = alpha x0 +
sigma eps that is two equations in two unknowns, so one pair (a, b) says all: the target, how to
read a prediction, and how its squared error compares with that of x0. Nothing assumes
alpha^2 + sigma^2 = 1.
"""

import abc
import dataclasses

from jax.typing import ArrayLike
from jaxtyping import Float

from diffusion.levels import AnyArray, NoiseLevel, namespace
from diffusion.schedules import Schedule


class Parameterization(abc.ABC):
    """Reads and writes raw = a x0 + b eps; subclasses give (a, b)."""

    @abc.abstractmethod
    def coefficients(self, level: NoiseLevel) -> tuple[ArrayLike, ArrayLike]:
        """(a, b) of raw = a x0 + b eps."""

    def _determinant(self, level: NoiseLevel) -> ArrayLike:
        a, b = self.coefficients(level)
        return level.alpha * b - level.sigma * a

    def network_input(
        self, x: Float[AnyArray, "batch *shape"], level: NoiseLevel, schedule: Schedule
    ) -> tuple[Float[AnyArray, "batch *shape"], ArrayLike]:
        """(c_in x, what the network is told of time): here x itself, and time on 0..1000."""
        return x, schedule.network_time(level)

    def target(
        self,
        x0: Float[AnyArray, "batch *shape"],
        eps: Float[AnyArray, "batch *shape"],
        level: NoiseLevel,
    ) -> Float[AnyArray, "batch *shape"]:
        """What the raw output is regressed on."""
        a, b = self.coefficients(level.like(x0))
        return a * x0 + b * eps

    def prediction(
        self,
        raw: Float[AnyArray, "batch *shape"],
        x: Float[AnyArray, "batch *shape"],
        level: NoiseLevel,
    ) -> tuple[Float[AnyArray, "batch *shape"], Float[AnyArray, "batch *shape"]]:
        """(x0, eps) told by the raw output at the noisy x; alpha x0 + sigma eps = x."""
        level = level.like(x)
        a, b = self.coefficients(level)
        determinant = self._determinant(level)
        return (b * x - level.sigma * raw) / determinant, (level.alpha * raw - a * x) / determinant

    def log_x0_weight(self, level: NoiseLevel) -> ArrayLike:
        """log of |target - raw|^2 / |x0 - x0_hat|^2, a function of the level alone."""
        xp = namespace(level.sigma)
        return 2.0 * (xp.log(abs(self._determinant(level))) - xp.log(level.sigma))


class Eps(Parameterization):
    """The noise (DDPM). |eps - eps_hat|^2 = SNR |x0 - x0_hat|^2."""

    def coefficients(self, level: NoiseLevel) -> tuple[ArrayLike, ArrayLike]:
        """(0, 1)."""
        return 0.0, 1.0


class X0(Parameterization):
    """The clean image."""

    def coefficients(self, level: NoiseLevel) -> tuple[ArrayLike, ArrayLike]:
        """(1, 0)."""
        return 1.0, 0.0


class V(Parameterization):
    """v = alpha eps - sigma x0 (Salimans & Ho 2022); its error is (SNR + 1) times x0's on vp."""

    def coefficients(self, level: NoiseLevel) -> tuple[ArrayLike, ArrayLike]:
        """(-sigma, alpha)."""
        return -level.sigma, level.alpha


class Residual(Parameterization):
    """eps - z, what VDM's network adds to its input (Kingma et al. 2021, appendix B.3)."""

    def coefficients(self, level: NoiseLevel) -> tuple[ArrayLike, ArrayLike]:
        """(-alpha, 1 - sigma): 1 - sigma loses digits at pure noise only, where it is nothing."""
        return -level.alpha, 1.0 - level.sigma

    def _determinant(self, level: NoiseLevel) -> ArrayLike:
        return level.alpha

    def prediction(
        self,
        raw: Float[AnyArray, "batch *shape"],
        x: Float[AnyArray, "batch *shape"],
        level: NoiseLevel,
    ) -> tuple[Float[AnyArray, "batch *shape"], Float[AnyArray, "batch *shape"]]:
        """eps = x + raw, without the differences of the general form."""
        level, eps = level.like(x), x + raw
        return (x - level.sigma * eps) / level.alpha, eps


class Flow(Parameterization):
    """The velocity eps - x0 of a straight line from data to noise (rectified flow)."""

    def coefficients(self, level: NoiseLevel) -> tuple[ArrayLike, ArrayLike]:
        """(-1, 1)."""
        return -1.0, 1.0


@dataclasses.dataclass(frozen=True)
class EDM(Parameterization):
    """EDM's F: x0 = c_skip y + c_out F, y = x / alpha at noise sigma / alpha (Karras 2022, eq. 7).

    Written in (alpha, sigma), so that it holds for every scaling and at pure noise too.
    """

    sigma_data: float = 0.5

    def _norm(self, level: NoiseLevel) -> ArrayLike:
        """Standard deviation of the noisy x for data of standard deviation sigma_data."""
        xp = namespace(level.sigma)
        return xp.sqrt(level.sigma**2 + (level.alpha * self.sigma_data) ** 2)

    def coefficients(self, level: NoiseLevel) -> tuple[ArrayLike, ArrayLike]:
        """(x0 - c_skip y) / c_out, sorted by x0 and eps: no difference of near-equal numbers."""
        norm = self._norm(level)
        return level.sigma / self.sigma_data / norm, -level.alpha * self.sigma_data / norm

    def network_input(
        self, x: Float[AnyArray, "batch *shape"], level: NoiseLevel, schedule: Schedule
    ) -> tuple[Float[AnyArray, "batch *shape"], ArrayLike]:
        """(x of unit variance, c_noise = ln(sigma / alpha) / 4)."""
        return x / self._norm(level.like(x)), -0.125 * level.logsnr
