"""What a way to measure likelihood is."""

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion.denoiser import Condition, Denoiser
from diffusion.levels import NoiseLevel, alpha_sigma
from diffusion.schedules import Schedule


class Result(NamedTuple):
    """Of each image.

    parts: bits/dim; -log2 p(image) / dimensions is their sum, exactly, in expectation or as a
        bound, as the method says.
    terms: what the method knows of single noise levels.
    counts: what it took.
    """

    parts: dict[str, Float[Array, " batch"]]
    terms: dict[str, Float[Array, "batch terms"]]
    counts: dict[str, Float[Array, " batch"]]


class Method(abc.ABC):
    """A way to measure -log2 p(x) of images x = v / 127.5 - 1 of 8-bit values v.

    The prior at the schedule's noisy end is a unit normal of z / sqrt(alpha^2 + sigma^2), which on
    a vp path is z itself (DDPM, VDM, score SDE) and on others of their own prior but for the
    vanishing share of data in z.
    """

    @abc.abstractmethod
    def plan(self, schedule: Schedule, learned_variance: bool) -> Any:
        """What depends on the schedule alone, made on the host: float64 numpy, cast where used.

        Raises:
            ValueError: the method has no value on this schedule or without a learned variance.
        """

    @abc.abstractmethod
    def __call__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        plan: Any,
        x0: Float[Array, "batch *shape"],
        condition: Condition,
        keys: Key[Array, " batch"],
    ) -> Result:
        """Measure x0. Image i has only the randomness of keys[i]; the denoiser does not clip."""


def normals(
    keys: Key[Array, " batch"], k: Int[Array, ""] | int, like: Float[Array, "batch *shape"]
) -> Float[Array, "batch *shape"]:
    """The k-th standard normal noise of each image."""
    shape = like.shape[1:]
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, k), shape))(keys)


def uniforms(
    keys: Key[Array, " batch"], k: Int[Array, ""] | int, shape: tuple[int, ...] = ()
) -> Float[Array, "batch *shape"]:
    """The k-th uniform numbers on [0, 1) of each image."""
    return jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, k), shape))(keys)


def normalized(level: NoiseLevel) -> NoiseLevel:
    """The level of the same logsnr scaled to alpha^2 + sigma^2 = 1."""
    return NoiseLevel(level.t, level.logsnr, *alpha_sigma(level.logsnr, "vp"))


def ends(schedule: Schedule) -> tuple[NoiseLevel, NoiseLevel]:
    """The least and the most noisy level of `schedule.t_range` (numpy scalars)."""
    first, last = (schedule.level(np.float64(t)) for t in schedule.t_range)
    return first, last


def cast(plan: Any) -> Any:
    """The plan as jax arrays, its numbers of the default float."""

    def array(leaf):
        return jnp.asarray(leaf, bool if leaf.dtype == bool else jnp.result_type(float))

    return jax.tree.map(array, plan)
