"""Antialiased resizing on the device, to and from sizes that may be traced numbers.

An image of a size that is not known when the program is compiled lies in the upper left corner of
an array; beyond it its last row and column are repeated.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# In the order of the numbers that `weights` takes.
METHODS = ("bilinear", "bicubic", "area", "gaussian")
# Those of `resize`.
FILTERS = METHODS[:3]
Number = Int[Array, ""] | Float[Array, ""] | int | float


def weights(
    method: Number,
    size_in: Number,
    size_out: Number,
    length_in: int,
    length_out: int,
    sigma: Number = 1.0,
) -> Float[Array, "length_out length_in"]:
    """The matrix that resizes one axis.

    The filter is stretched by the factor of a reduction, so that nothing is skipped (as in PIL, and
    in PyTorch and JAX with antialias). Where `length_out` is larger than `size_out`, the last row
    that is in the image is repeated.

    Args:
        method: index in `METHODS`. 'bicubic' is Keys' with a = -1/2; 'area' means over the part of
            the input that an output pixel covers; 'gaussian' is a blur of `sigma` input pixels that
            is looked at in the middles of the output pixels.
    """
    ratio = jnp.asarray(size_in, jnp.float32) / size_out
    row = jnp.minimum(jnp.arange(length_out), jnp.asarray(size_out) - 1)
    middle = (row + 0.5) * ratio - 0.5
    column = jnp.arange(length_in)
    stretch = jnp.maximum(ratio, 1.0)
    off = jnp.abs(column - middle[:, None])
    x = off / stretch
    cubic = jnp.where(
        x < 1, (1.5 * x - 2.5) * x**2 + 1, jnp.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0)
    )
    kernels = (
        jnp.maximum(1 - x, 0),
        cubic,
        # Overlap of an input pixel, one wide, with an output pixel, `ratio` wide.
        jnp.clip(0.5 * (1 + ratio) - off, 0, jnp.minimum(1.0, ratio)),
        # The nearest pixel is never lost, however narrow the blur.
        jnp.exp(-0.5 * (off**2 - jnp.min(off, axis=1, keepdims=True) ** 2) / sigma**2),
    )
    chosen = [jnp.asarray(method) == n for n in range(len(METHODS))]
    matrix = jnp.where(column < size_in, jnp.select(chosen, kernels), 0)
    return matrix / matrix.sum(axis=1, keepdims=True)


def apply(
    images: Float[Array, "batch height width channels"],
    rows: Float[Array, "*batch out_height height"],
    columns: Float[Array, "*batch out_width width"],
) -> Float[Array, "batch out_height out_width channels"]:
    """Resizes with the matrices of both axes, one for all images or one each."""
    each = "b" if rows.ndim == 3 else ""
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum(
        f"{each}oh,{each}pw,bhwc->bopc", rows, columns, images, precision=exact, optimize=True
    )


def resize(
    images: Float[Array, "batch height width channels"], size: Sequence[int], method: str
) -> Float[Array, "batch out_height out_width channels"]:
    """Images at another (height, width).

    Args:
        method: 'bilinear', 'bicubic' or 'area', antialiased.

    Raises:
        ValueError: no such method.
    """
    if method not in FILTERS:
        allowed = ", ".join(map(repr, FILTERS))
        raise ValueError(f"method: {method!r} is none of {allowed}")
    kind = METHODS.index(method)
    rows, columns = (
        weights(kind, before, after, before, after)
        for before, after in zip(images.shape[1:3], size, strict=True)
    )
    return apply(images, rows, columns)
