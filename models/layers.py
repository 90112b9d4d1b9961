"""Layers that the networks share, and their initialization."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float, PRNGKeyArray

Initializer = Callable[..., Array]


class GroupNorm(nnx.Module):
    """Group normalization (Wu and He, 2018) over positions and the channels of a group.

    Statistics are float32 whatever the type of x. The variance is the mean of (x - mean)^2, in a
    second pass: E[x^2] - E[x]^2 loses all digits where |mean| >> std.
    """

    def __init__(self, channels: int, groups: int, eps: float, *, rngs: nnx.Rngs):
        self.groups, self.eps = groups, eps
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        scale: Float[Array, "batch channels"] | None = None,
        shift: Float[Array, "batch channels"] | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """Normalized x; with `scale` and `shift`, norm(x) * (1 + scale) + shift (FiLM)."""
        batch, height, width, channels = x.shape
        gamma, beta = self.scale[...], self.bias[...]
        if scale is not None:
            gamma, beta = gamma * (1 + scale), beta * (1 + scale) + shift
        grouped = x.astype(jnp.float32).reshape(batch, height * width, self.groups, -1)
        mean = grouped.mean((1, 3), keepdims=True)
        centered = grouped - mean
        variance = jnp.square(centered).mean((1, 3), keepdims=True)
        normal = (centered * jax.lax.rsqrt(variance + self.eps)).reshape(x.shape)
        gamma, beta = (a.reshape(-1, 1, 1, channels) for a in (gamma, beta))
        return (normal * gamma + beta).astype(x.dtype)


def linear(
    inputs: int, outputs: int, *, init: str, dtype: str, rngs: nnx.Rngs, zero=False, parts: int = 1
) -> nnx.Linear:
    """Dense layer over the last axis. `parts` > 1: that many layers side by side in one kernel."""
    kernel_init, bias_init = _initializers(init, inputs, zero)
    return nnx.Linear(
        inputs,
        outputs,
        dtype=jnp.dtype(dtype),
        kernel_init=_side_by_side(kernel_init, parts),
        bias_init=bias_init,
        rngs=rngs,
    )


def conv(
    inputs: int,
    outputs: int,
    *,
    init: str,
    dtype: str,
    rngs: nnx.Rngs,
    zero=False,
    stride: int = 1,
    padding: tuple[int, int] = (1, 1),
) -> nnx.Conv:
    """3x3 convolution; `padding` is (before, after) on both spatial axes."""
    kernel_init, bias_init = _initializers(init, 9 * inputs, zero)
    return nnx.Conv(
        inputs,
        outputs,
        (3, 3),
        strides=stride,
        padding=(padding, padding),
        dtype=jnp.dtype(dtype),
        kernel_init=kernel_init,
        bias_init=bias_init,
        rngs=rngs,
    )


def upsample(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch height2 width2 channels"]:
    """Twice the resolution, nearest neighbour."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def downsample(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch height_half width_half channels"]:
    """Half the resolution, mean of each 2 x 2 square."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def dropout(x: Float[Array, "..."], rate: float, key: PRNGKeyArray | None) -> Float[Array, "..."]:
    """Zeroes each element with probability `rate` and scales the rest; without a key, x itself."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


def _initializers(init: str, fan_in: int, zero: bool) -> tuple[Initializer, Initializer]:
    """Initializers of kernel and bias: 'ddpm' (Ho et al., 2020) or 'torch' (PyTorch's defaults)."""
    if zero:
        return initializers.zeros, initializers.zeros
    if init == "ddpm":
        return initializers.variance_scaling(1.0, "fan_avg", "uniform"), initializers.zeros
    if init == "torch":
        # kaiming_uniform(a=sqrt(5)): variance 1 / (3 fan_in). The bias has the same bound.
        bound = 1 / math.sqrt(fan_in)
        return initializers.variance_scaling(1 / 3, "fan_in", "uniform"), _uniform(bound)
    raise ValueError(f"init={init!r}: allowed are 'ddpm' and 'torch'")


def _uniform(bound: float) -> Initializer:
    def initialize(key, shape, dtype=jnp.float32, **_):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return initialize


def _side_by_side(initializer: Initializer, parts: int) -> Initializer:
    """Fills the last axis by `parts` separate draws, so that fan_out is that of one part."""
    if parts == 1:
        return initializer

    def initialize(key, shape, dtype=jnp.float32, **_):
        keys = jax.random.split(key, parts)
        part = (*shape[:-1], shape[-1] // parts)
        return jnp.concatenate([initializer(k, part, dtype) for k in keys], axis=-1)

    return initialize
