"""Layers that keep the expected magnitude of activations (EDM2: Karras et al., 2024, appendix B).

Magnitude is the root mean square. Equations are those of the paper.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from models.convolution import convolve
from models.functional import Params, normal, uniform

# Root mean square of silu(x) for a standard normal x, to the digits that EDM2 uses.
_SILU_MAGNITUDE = 0.596


def normalized(
    x: Float[Array, "*shape"], axes: int | tuple[int, ...], eps: float = 1e-4
) -> Float[Array, "*shape"]:
    """x / (eps + RMS of x over `axes`), computed in float32 (eq. 47; pixel norm over channels)."""
    exact = x.astype(jnp.float32)
    square = jnp.square(exact).mean(axes, keepdims=True)
    # The slope of the root is infinite at zero; that of a magnitude of zero is taken to be zero.
    some = square > 0
    magnitude = jnp.where(some, jnp.sqrt(jnp.where(some, square, 1)), 0)
    return (exact / (magnitude + eps)).astype(x.dtype)


def normalized_kernel(kernel: Float[Array, "*window inputs outputs"]) -> Array:
    """A kernel whose weights for each output channel have RMS 1 (up to eps)."""
    return normalized(kernel, tuple(range(kernel.ndim - 1)))


def is_kernel(path: tuple, leaf: Array) -> bool:
    """Whether a leaf of a tree of parameters is one that `normalized_kernel` is for."""
    return bool(path) and getattr(path[-1], "key", None) == "kernel" and leaf.ndim >= 2


def normalized_kernels(params: Params) -> Params:
    """params with every kernel normalized, as EDM2 does before each forward pass in training."""

    def leaf(path, value):
        value = jnp.asarray(value)
        return normalized_kernel(value) if is_kernel(path, value) else value

    return jax.tree_util.tree_map_with_path(leaf, params)


def mp_silu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """silu(x), scaled back to magnitude 1 (eq. 81)."""
    return jax.nn.silu(x) / _SILU_MAGNITUDE


def mp_sum(
    a: Float[Array, "*shape"], b: Float[Array, "*shape"], balance: float
) -> Float[Array, "*shape"]:
    """(1 - balance) a + balance b, scaled to magnitude 1 for independent a and b (eq. 88)."""
    return ((1 - balance) * a + balance * b) / math.hypot(1 - balance, balance)


def mp_cat(
    a: Float[Array, "*axes channels_a"], b: Float[Array, "*axes channels_b"], balance: float
) -> Float[Array, "*axes channels"]:
    """a and b side by side; their shares of what follows are 1 - balance : balance (eq. 103)."""
    size_a, size_b = a.shape[-1], b.shape[-1]
    scale = math.sqrt(size_a + size_b) / math.hypot(1 - balance, balance)
    weight_a, weight_b = (1 - balance) / math.sqrt(size_a), balance / math.sqrt(size_b)
    return jnp.concatenate([scale * weight_a * a, scale * weight_b * b], axis=-1)


class MPFourier(nnx.Module):
    """sqrt(2) cos(frequency * x + phase), frequency N(0, (2 pi)^2), phase U(-pi, pi) (eq. 75).

    Both are drawn once and stay: they are parameters, so that they are stored with the others and
    published values can be read, but no gradient reaches them.
    """

    def __init__(self, channels: int):
        self.frequencies = normal((channels,), 2 * math.pi)
        self.phases = uniform((channels,), math.pi)

    def __call__(self, x: Num[Array, " batch"]) -> Float[Array, "batch channels"]:
        """float32 always."""
        frequencies = jax.lax.stop_gradient(self.frequencies[...])
        phases = jax.lax.stop_gradient(self.phases[...])
        return math.sqrt(2) * jnp.cos(x.astype(jnp.float32)[:, None] * frequencies + phases)


class MPConv(nnx.Module):
    """Convolution with a 3x3 window, or dense layer (window ()), of normalized weights (eq. 47).

    The weights start N(0, 1) and are normalized in each call: their size does not matter to the
    output, only to how far a step of the optimizer turns them. There is no bias.
    """

    def __init__(self, inputs: int, outputs: int, *, window: tuple[int, ...] = (), dtype: str):
        self.dtype = dtype
        self.kernel = normal((*window, inputs, outputs), 1.0)

    def __call__(
        self, x: Float[Array, "*axes inputs"], gain: Float[Array, ""] | float = 1.0
    ) -> Float[Array, "*axes outputs"]:
        """gain times the output that keeps the magnitude; x is cast to `dtype`."""
        kernel = normalized_kernel(self.kernel[...])
        fan_in = math.prod(kernel.shape[:-1])
        kernel = (kernel * (gain / math.sqrt(fan_in))).astype(self.dtype)
        x = x.astype(self.dtype)
        return x @ kernel if kernel.ndim == 2 else convolve(x, kernel)


class MPEmbedding(nnx.Module):
    """Label to vector: a dense layer as `MPConv` of one-hot vectors times sqrt(classes).

    That is a row of the normalized kernel. With `null`, label `classes` means "no label" and gives
    zeros; a label beyond gives NaN.
    """

    def __init__(self, classes: int, outputs: int, *, null: bool):
        self.null = null
        self.kernel = normal((classes, outputs), 1.0)

    def __call__(self, label: Num[Array, " batch"]) -> Float[Array, "batch outputs"]:
        """float32 always."""
        rows = normalized_kernel(self.kernel[...])
        if self.null:
            rows = jnp.pad(rows, ((0, 1), (0, 0)))
        return jnp.take(rows, label, axis=0, mode="fill")
