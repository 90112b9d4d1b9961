"""3x3 convolution by Winograd's F(2x2, 3x3): 16 products where the definition has 36.

Lavin and Gray, "Fast algorithms for convolutional neural networks" (arXiv:1509.09308), section 4.1:
each 2 x 2 square of the output, the 4 x 4 square of the input that it depends on, and the kernel
turn into 16 numbers by sums along rows and columns; the convolution is then 16 matrix products over
channels. Stride 1, one pixel of zeros around, even height and width. All coefficients are 0, 1 and
1/2, so the rounding error is no larger than that of the plain sum.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Image = Float[Array, "batch height width channels"]
ImageOut = Float[Array, "batch height width channels_out"]
Kernel = Float[Array, "3 3 channels channels_out"]
Tiles = Float[Array, "4 4 tiles channels"]
Products = Float[Array, "4 4 channels channels_out"]


def of_kernel(kernel: Kernel) -> Products:
    """The kernel's 16 matrices."""
    transform = jnp.asarray(_KERNEL, kernel.dtype)
    matrices = transform @ kernel.reshape(9, -1)
    return matrices.reshape(4, 4, *kernel.shape[2:])


def convolve(x: Image, matrices: Products) -> ImageOut:
    """The convolution, given `of_kernel(kernel)`."""
    y = jnp.einsum("ijtc,ijcd->ijtd", _of_input(x), matrices)
    return _to_output(y, x.shape)


def transposed(g: ImageOut, matrices: Products) -> Image:
    """The gradient of the input from g, that of the value, given `of_kernel(kernel)`.

    It is the convolution of g with the kernel turned around, whose matrices are the same with the
    first and the last exchanged; here it is the tiles that are in this order.
    """
    x = jnp.einsum("ijtd,ijcd->ijtc", _of_input(g, turned=True), matrices)
    return _to_output(x, g.shape, turned=True)


def kernel_products(x: Image, g: ImageOut) -> Products:
    """For `to_kernel`, from the gradient g of the convolution's value; a sum over the batch."""
    return jnp.einsum("ijtc,ijtd->ijcd", _of_input(x), _of_output(g))


def to_kernel(products: Products) -> Kernel:
    """The gradient of the kernel, from the sum of all `kernel_products`."""
    transform = jnp.asarray(_KERNEL.T, products.dtype)
    kernel = transform @ products.reshape(16, -1)
    return kernel.reshape(3, 3, *products.shape[2:])


# One axis of a kernel to four numbers, and both axes.
_AXIS = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_KERNEL = np.kron(_AXIS, _AXIS)


def _of_input(x: Image, turned: bool = False) -> Tiles:
    def transform(x, axis):
        last = x.shape[axis] - 3
        d = [lax.slice_in_dim(x, i, i + last, stride=2, axis=axis) for i in range(4)]
        first, last = d[0] - d[2], d[1] - d[3]
        middle = d[1] + d[2], d[2] - d[1]
        return (last, *middle, first) if turned else (first, *middle, last)

    x = jnp.pad(lax.optimization_barrier(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = lax.optimization_barrier(jnp.stack(transform(x, 1)))
    return jnp.stack(transform(rows, 3), axis=1).reshape(4, 4, -1, x.shape[-1])


def _to_output(y: Tiles, shape: tuple[int, ...], turned: bool = False) -> ImageOut:
    batch, height, width, _ = shape
    y = y.reshape(4, 4, batch, height // 2, width // 2, -1)

    def transform(y):
        first, last = (y[3], y[0]) if turned else (y[0], y[3])
        return first + y[1] + y[2], y[1] - y[2] - last

    y = jnp.stack([jnp.stack(transform(row), axis=3) for row in transform(y)], axis=2)
    # Without barriers XLA repeats these sums in every reader of the result.
    return lax.optimization_barrier(y.reshape(batch, height, width, -1))


def _of_output(g: ImageOut) -> Tiles:
    def transform(even, odd):
        return even, even + odd, even - odd, -odd

    batch, height, width, channels = g.shape
    g = lax.optimization_barrier(g).reshape(batch, height // 2, 2, width // 2, 2, channels)
    rows = lax.optimization_barrier(jnp.stack(transform(g[:, :, 0], g[:, :, 1])))
    columns = transform(rows[:, :, :, :, 0], rows[:, :, :, :, 1])
    return jnp.stack(columns, axis=1).reshape(4, 4, -1, channels)
