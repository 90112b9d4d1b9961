"""Layers that the networks share, and their initialization."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from models.functional import uniform
from models.matmul import matmul


class GroupNorm(nnx.Module):
    """Group normalization (Wu and He, 2018) over positions and the channels of a group.

    Statistics are float32 whatever the type of x. The variance is the mean of (x - mean)^2, in a
    second pass: E[x^2] - E[x]^2 loses all digits where |mean| >> std.
    """

    def __init__(self, channels: int, groups: int, eps: float):
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
        gamma, beta = self.scale[...], self.bias[...]
        if scale is not None:
            gamma, beta = gamma * (1 + scale), beta * (1 + scale) + shift
        # Positions are reduced before channels: the large array keeps its shape, which is faster.
        exact = x.astype(jnp.float32)
        centered = exact - self._over_group(exact.mean((1, 2)))[:, None, None]
        variance = self._over_group(jnp.square(centered).mean((1, 2)))
        gain = jax.lax.rsqrt(variance + self.eps) * gamma
        beta = jnp.broadcast_to(beta, gain.shape)
        return (centered * gain[:, None, None] + beta[:, None, None]).astype(x.dtype)

    def _over_group(self, x: Float[Array, "batch channels"]) -> Float[Array, "batch channels"]:
        """Each channel's value becomes the mean of its group."""
        groups = x.reshape(x.shape[0], self.groups, -1)
        return jnp.broadcast_to(groups.mean(-1, keepdims=True), groups.shape).reshape(x.shape)


class Linear(nnx.Module):
    """Dense layer over the last axis, in `dtype`.

    init, zero: see `parameters`. `parts` > 1 makes that many layers of outputs // parts side by
    side, each with its own fan out. Without `use_bias` there is no parameter of it.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        init: str,
        dtype: str,
        zero: bool = False,
        parts: int = 1,
        use_bias: bool = True,
    ):
        self.dtype = dtype
        self.kernel, bias = parameters((inputs, outputs), init=init, zero=zero, parts=parts)
        self.bias = bias if use_bias else None

    def __call__(self, x: Float[Array, "*axes inputs"]) -> Float[Array, "*axes outputs"]:
        """x is cast to `dtype`."""
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        y = matmul(x, kernel)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


def parameters(
    shape: tuple[int, ...], *, init: str, zero: bool = False, parts: int = 1
) -> tuple[nnx.Param, nnx.Param]:
    """Kernel [*window, in, out] and bias [out], float32.

    init: 'ddpm' is variance scaling 1 / fan_avg, uniform, and no bias (Ho et al., 2020); 'torch' is
        PyTorch's default, U(-b, b) with b = fan_in^-1/2 for both (kaiming_uniform(a=sqrt(5))).
    zero: both exactly zero instead.
    """
    area, outputs = math.prod(shape[:-2]), shape[-1]
    fan_in, fan_out = area * shape[-2], area * outputs // parts
    if init not in ("ddpm", "torch"):
        raise ValueError(f"init={init!r}: allowed are 'ddpm' and 'torch'")
    if zero:
        return nnx.Param(jnp.zeros(shape)), nnx.Param(jnp.zeros(outputs))
    if init == "ddpm":
        return uniform(shape, (6 / (fan_in + fan_out)) ** 0.5), nnx.Param(jnp.zeros(outputs))
    return uniform(shape, fan_in**-0.5), uniform((outputs,), fan_in**-0.5)


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


def space_to_depth(
    x: Float[Array, "batch height width channels"], size: int
) -> Float[Array, "batch rows columns patch_channels"]:
    """Each patch of size x size pixels as one pixel, its channels (row, column, channel)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.swapaxes(2, 3).reshape(batch, height // size, width // size, -1)


def depth_to_space(
    x: Float[Array, "batch rows columns patch_channels"], size: int
) -> Float[Array, "batch height width channels"]:
    """The inverse of `space_to_depth`."""
    batch, rows, columns, _ = x.shape
    x = x.reshape(batch, rows, columns, size, size, -1).swapaxes(2, 3)
    return x.reshape(batch, rows * size, columns * size, -1)


def dropout(x: Float[Array, "..."], rate: float, key: PRNGKeyArray | None) -> Float[Array, "..."]:
    """Zeroes each element with probability `rate` and scales the rest; without a key, x itself."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)
