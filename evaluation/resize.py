"""Resizing as metrics are defined by, on the device: each of these makes another metric.

Each is a matrix for rows and one for columns, made on the host in float64 for the size at hand.
None but 'pil' rounds to whole numbers; all take and give values from 0 to 255.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from input_pipeline.resize import apply

Matrix = Float[np.ndarray, "after before"]
Images = Float[Array | np.ndarray, "batch height width channels"]
Resized = Float[Array, "batch side side channels"]


def tensorflow1(before: int, after: int) -> Matrix:
    """TensorFlow 1's bilinear filter: pixel i is looked up at i * before / after, all in float32.

    It has no antialiasing, and the image moves by half a pixel. FID's graph has it inside.
    """
    at = np.arange(after, dtype=np.float32) * (np.float32(before) / np.float32(after))
    return _between(at, before)


def half_pixel(before: int, after: int) -> Matrix:
    """PyTorch's bilinear filter without antialiasing, pixels being looked up at their middles."""
    scale = np.float32(before) / np.float32(after)
    at = (np.arange(after, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    return _between(np.maximum(at, 0), before)


def bicubic(before: int, after: int) -> Matrix:
    """Keys' filter with a = -1/2, antialiased, as PIL's and PyTorch's and JAX's with antialias."""
    ratio = before / after
    stretch = max(ratio, 1.0)
    middle = (np.arange(after)[:, None] + 0.5) * ratio
    x = np.abs(np.arange(before) + 0.5 - middle) / stretch
    inner = (1.5 * x - 2.5) * x**2 + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    matrix = np.where(x < 1, inner, np.where(x < 2, outer, 0.0))
    return matrix / matrix.sum(1, keepdims=True)


def tf1(images: Images, side: int) -> Resized:
    """See `tensorflow1`."""
    return _separable(tensorflow1, images, side)


def torch(images: Images, side: int) -> Resized:
    """See `half_pixel`."""
    return _separable(half_pixel, images, side)


def antialiased(images: Images, side: int) -> Resized:
    """See `bicubic`; what the filter overshoots is kept."""
    return _separable(bicubic, images, side)


def clean(images: Images, side: int) -> Resized:
    """Bicubic, clipped to 0..255: PIL's filter on floats (Parmar et al., 2022)."""
    return jnp.clip(antialiased(images, side), 0, 255)


def pil(images: Images, side: int) -> Resized:
    """Bicubic, to the bit what PIL makes of square images of 8 bits: whole numbers after each axis.

    Columns are changed first. PIL 13 begins with the rows of some images that are higher than wide.
    """
    x = jnp.asarray(images)
    for axis in (2, 1):
        # PIL's weights are whole numbers over 2^22. In two parts their sums are exact in float32.
        whole = bicubic(x.shape[axis], side) * 2**22
        parts = np.divmod(np.trunc(whole + np.copysign(0.5, whole)), 2**11)
        high, low = (_along(x, _float32(part), axis).astype(jnp.int32) for part in parts)
        x = jnp.clip((high * 2**11 + low + 2**21) >> 22, 0, 255).astype(jnp.float32)
    return x


RESIZES: dict[str, Callable[[Images, int], Resized]] = {
    "tf1": tf1,
    "torch": torch,
    "clean": clean,
    "antialiased": antialiased,
    "pil": pil,
}


def rgb(
    images: Num[Array | np.ndarray, "batch height width channels"],
) -> Float[Array, "batch height width 3"]:
    """As float32, grey images as three equal channels.

    Raises:
        ValueError: neither one nor three channels.
    """
    channels = images.shape[-1]
    if channels not in (1, 3):
        raise ValueError(f"images have {channels} channels; features are of RGB (3) or grey (1)")
    return jnp.broadcast_to(jnp.asarray(images, jnp.float32), (*images.shape[:-1], 3))


def square(images: Images) -> Float[Array | np.ndarray, "batch side side channels"]:
    """The middle of images that are wider than high, or higher than wide."""
    height, width = images.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, top : top + side, left : left + side]


def _separable(kernel: Callable[[int, int], Matrix], images: Images, side: int) -> Resized:
    rows, columns = (_float32(_cached(kernel, before, side)) for before in images.shape[1:3])
    return apply(jnp.asarray(images), rows, columns)


def _along(
    x: Images, matrix: Float[Array, "after before"], axis: int
) -> Float[Array, "batch height2 width2 channels"]:
    product = jnp.tensordot(matrix, x, (1, axis), precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(product, 0, axis)


@functools.cache
def _cached(kernel, before: int, after: int) -> Matrix:
    return kernel(before, after)


def _float32(matrix: Matrix) -> Float[Array, "after before"]:
    return jnp.asarray(matrix, jnp.float32)


def _between(at: Float[np.ndarray, " after"], before: int) -> Matrix:
    """Linear interpolation at `at`; beyond the last pixel there is only that."""
    low = np.minimum(np.floor(at).astype(int), before - 1)
    high, share = np.minimum(low + 1, before - 1), at - low
    matrix, row = np.zeros((len(at), before)), np.arange(len(at))
    np.add.at(matrix, (row, low), 1 - share)
    np.add.at(matrix, (row, high), share)
    return matrix
