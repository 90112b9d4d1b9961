"""A network joined with what its output means, and rules on its prediction of the clean image."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion.clipping import Clip, keep
from diffusion.levels import AnyArray, NoiseLevel
from diffusion.options import check_option
from diffusion.parameterization import Parameterization
from diffusion.schedules import Schedule

EPS_AFTER_CLIP = ("rederive", "raw")

Condition = dict[str, Any] | None
# (x_in [batch ...], time [batch], condition) -> raw
Network = Callable[[Array, Array, Condition], Array]


class Prediction(NamedTuple):
    """What a denoiser says of a noisy x; fields have the shape of x."""

    x0: AnyArray
    eps: AnyArray
    # Network's v in [-1, 1] of a learned variance (`gaussian.learned_range_log_variance`).
    variance_fraction: AnyArray | None = None


# (x [batch ...], level of scalars or [batch], condition) -> Prediction
Denoiser = Callable[[AnyArray, NoiseLevel, Condition], Prediction]


def call_network(
    network: Network,
    schedule: Schedule,
    parameterization: Parameterization,
    x: Float[Array, "batch *shape"],
    level: NoiseLevel,
    condition: Condition,
    learned_variance: bool,
) -> tuple[Float[Array, "batch *shape"], Float[Array, "batch *shape"] | None]:
    """The network's raw output at noisy x, at least float32, and its v where it has one.

    With learned_variance the network has twice x's channels: the first half is raw, the second v.
    """
    x_in, time = parameterization.network_input(x, level, schedule)
    raw = network(x_in, jnp.broadcast_to(jnp.asarray(time), x.shape[:1]), condition)
    channels = x.shape[-1]
    wanted = (*x.shape[:-1], 2 * channels if learned_variance else channels)
    if raw.shape != wanted:
        raise ValueError(
            f"the network's output has shape {raw.shape}, wanted {wanted}: "
            f"variance {'is learned: twice' if learned_variance else 'is fixed: as many'} "
            f"channels as the image's {channels}"
        )
    raw = raw.astype(jnp.promote_types(raw.dtype, jnp.float32))
    return (raw[..., :channels], raw[..., channels:]) if learned_variance else (raw, None)


def denoiser(
    network: Network,
    schedule: Schedule,
    parameterization: Parameterization,
    learned_variance: bool = False,
) -> Denoiser:
    """Join a network with its parameterization; `schedule` is the one that it was trained on."""

    def denoise(
        x: Float[Array, "batch *shape"], level: NoiseLevel, condition: Condition = None
    ) -> Prediction:
        raw, fraction = call_network(
            network, schedule, parameterization, x, level, condition, learned_variance
        )
        return Prediction(*parameterization.prediction(raw, x, level), fraction)

    return denoise


def clip(denoiser: Denoiser, rule: Clip, eps_after_clip: str = "rederive") -> Denoiser:
    """Restrict the predicted clean image by a rule of `clipping`, such as `clipping.static()`.

    eps_after_clip says which noise goes with the clipped image: 'rederive' (x - alpha x0) / sigma
    (OpenAI), or 'raw', as predicted (the DDIM authors, diffusers). Guidance goes inside:
    clip(guide(...)), since the clipped predictions are no longer affine in each other.
    """
    check_option("eps_after_clip", eps_after_clip, EPS_AFTER_CLIP)
    if rule is keep:
        return denoiser

    def denoise(x: AnyArray, level: NoiseLevel, condition: Condition = None) -> Prediction:
        prediction = denoiser(x, level, condition)
        x0, eps = rule(prediction.x0), prediction.eps
        if eps_after_clip == "rederive":
            # (x - alpha x0) / sigma, as a change of eps: exact where nothing was clipped.
            level = level.like(x)
            eps = eps + level.alpha / level.sigma * (prediction.x0 - x0)
        return prediction._replace(x0=x0, eps=eps)

    return denoise
