"""Schedules of variational diffusion models (Kingma et al. 2021), fixed and learned.

gamma = -logsnr rises with t from about gamma_min to about gamma_max.
"""

import abc
import dataclasses
import functools
from types import ModuleType

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Key

from diffusion.levels import NoiseLevel, as_floats, namespace
from diffusion.schedules.base import Schedule
from diffusion.schedules.inverse import bisect


@dataclasses.dataclass(frozen=True, eq=False)
class VDM(Schedule):
    """A vp schedule of continuous time; subclasses give gamma and its inverse at parameters."""

    gamma_min: float
    gamma_max: float
    params: dict | None = dataclasses.field(default=None, kw_only=True)
    scaling: str = dataclasses.field(default="vp", init=False)
    num_timesteps: None = dataclasses.field(default=None, init=False)

    def __post_init__(self):
        if not self.gamma_min < self.gamma_max:
            raise ValueError(
                f"vdm: gamma_min={self.gamma_min} must be less than gamma_max={self.gamma_max}"
            )

    @abc.abstractmethod
    def _gamma(self, xp: ModuleType, params: dict, t: ArrayLike) -> ArrayLike:
        """gamma(t)."""

    @abc.abstractmethod
    def _time(self, xp: ModuleType, params: dict, gamma: ArrayLike) -> ArrayLike:
        """The inverse of `_gamma`."""

    @property
    def t_range(self) -> tuple[float, float]:
        """All times."""
        return 0.0, 1.0

    @functools.cached_property
    def _initial(self) -> dict:
        # Also inside a compiled program these are numbers.
        with jax.ensure_compile_time_eval():
            return jax.device_get(self.init(jax.random.key(0)))

    def _call(self, function, x: ArrayLike) -> ArrayLike:
        """function(xp, params, x), in jax where x or a parameter is of jax."""
        xp, x = as_floats(x)
        params = self._initial if self.params is None else self.params
        if any(namespace(leaf) is jnp for leaf in jax.tree.leaves(params)):
            xp, x = jnp, jnp.asarray(x)
        params = jax.tree.map(lambda leaf: xp.asarray(leaf, x.dtype), params)
        return function(xp, params, x)

    def logsnr(self, t: ArrayLike) -> ArrayLike:
        """-gamma(t)."""
        return -self._call(self._gamma, t)

    def t_of_logsnr(self, logsnr: ArrayLike) -> ArrayLike:
        """Inverse of `logsnr`, also outside [0, 1]; clean data is at -inf."""
        return self._call(self._time, -as_floats(logsnr)[1])

    def network_time(self, level: NoiseLevel) -> ArrayLike:
        """1000 (gamma - gamma_min) / (gamma_max - gamma_min), of the initial ends (their code)."""
        gamma = -as_floats(level.logsnr)[1]
        return 1000.0 * (gamma - self.gamma_min) / (self.gamma_max - self.gamma_min)

    def bind(self, params: dict) -> "VDM":
        """The schedule at these parameters; itself where nothing is learned."""
        return dataclasses.replace(self, params=params) if params else self


class Linear(VDM):
    """gamma = gamma_min + (gamma_max - gamma_min) t."""

    def _gamma(self, xp: ModuleType, params: dict, t: ArrayLike) -> ArrayLike:
        return self.gamma_min + (self.gamma_max - self.gamma_min) * t

    def _time(self, xp: ModuleType, params: dict, gamma: ArrayLike) -> ArrayLike:
        return (gamma - self.gamma_min) / (self.gamma_max - self.gamma_min)


class Scalar(VDM):
    """gamma = b + |w| t with learned b and w."""

    def init(self, key: Key[Array, ""]) -> dict:
        """b = gamma_min, w = gamma_max - gamma_min."""
        return {"b": jnp.float32(self.gamma_min), "w": jnp.float32(self.gamma_max - self.gamma_min)}

    def _gamma(self, xp: ModuleType, params: dict, t: ArrayLike) -> ArrayLike:
        return params["b"] + abs(params["w"]) * t

    def _time(self, xp: ModuleType, params: dict, gamma: ArrayLike) -> ArrayLike:
        return (gamma - params["b"]) / abs(params["w"])


@dataclasses.dataclass(frozen=True, eq=False)
class MonotoneNetwork(VDM):
    """gamma = b + |w| t + |out| (2 sigmoid(|in| (2 t - 1) + bias) - 1) / features, all learned.

    learned_ends: as their code has it, b and w move the ends too. Without, gamma is stretched to
    gamma_min and gamma_max at t = 0 and 1 (the paper, appendix H), and the middle alone is learned.
    """

    features: int
    learned_ends: bool

    def __post_init__(self):
        super().__post_init__()
        if self.features < 1:
            raise ValueError(f"vdm_network: features={self.features} must be at least 1")

    def init(self, key: Key[Array, ""]) -> dict:
        """b and w as in `Scalar`; `in` and `out` normal of deviation 0.01, `bias` 0."""
        keys, shape = jax.random.split(key), (self.features,)
        return {
            "b": jnp.float32(self.gamma_min),
            "w": jnp.float32(self.gamma_max - self.gamma_min),
            "in": 0.01 * jax.random.normal(keys[0], shape),
            "bias": jnp.zeros(shape),
            "out": 0.01 * jax.random.normal(keys[1], shape),
        }

    def _free(self, xp: ModuleType, params: dict, t: ArrayLike) -> ArrayLike:
        """gamma before it is stretched."""
        hidden = abs(params["in"]) * (2.0 * t[..., None] - 1.0) + params["bias"]
        # 2 sigmoid(h) - 1.
        bent = xp.tanh(0.5 * hidden) @ abs(params["out"]) / self.features
        return params["b"] + abs(params["w"]) * t + bent

    def _ends(self, xp: ModuleType, params: dict, like: ArrayLike) -> tuple[ArrayLike, ArrayLike]:
        first, last = self._free(xp, params, xp.asarray([0.0, 1.0], like.dtype))
        return first, last

    def _gamma(self, xp: ModuleType, params: dict, t: ArrayLike) -> ArrayLike:
        gamma = self._free(xp, params, t)
        if self.learned_ends:
            return gamma
        first, last = self._ends(xp, params, t)
        share = (gamma - first) / (last - first)
        return self.gamma_min + (self.gamma_max - self.gamma_min) * share

    def _time(self, xp: ModuleType, params: dict, gamma: ArrayLike) -> ArrayLike:
        if not self.learned_ends:
            first, last = self._ends(xp, params, gamma)
            share = (gamma - self.gamma_min) / (self.gamma_max - self.gamma_min)
            gamma = first + (last - first) * share
        # What bends the line is between -bound and bound.
        bound = abs(params["out"]).sum() / self.features
        low, high = ((gamma - params["b"] + side) / abs(params["w"]) for side in (-bound, bound))
        return bisect(lambda t: -self._free(xp, params, t), -gamma, low, high)


def vdm(gamma_min: float = -13.3, gamma_max: float = 5.0) -> Linear:
    """logsnr linear in t (their 'fixed')."""
    return Linear(gamma_min, gamma_max)


def vdm_scalar(gamma_min: float = -13.3, gamma_max: float = 5.0) -> Scalar:
    """logsnr linear in t between learned ends (their 'learnable_scalar', of all their configs)."""
    return Scalar(gamma_min, gamma_max)


def vdm_network(
    gamma_min: float = -13.3,
    gamma_max: float = 5.0,
    features: int = 1024,
    learned_ends: bool = True,
) -> MonotoneNetwork:
    """A monotone network of t (appendix H; their 'learnable_nnet')."""
    return MonotoneNetwork(gamma_min, gamma_max, features, learned_ends)
