"""3x3 convolution without the cases in which XLA is slow on a CPU.

1. Wide layers: Winograd's algorithm takes half to two thirds of the time, for the value and for
   both gradients. On CPUs only.
2. Gradient of the kernel of other layers: XLA's takes the whole feature map as the window. Three
   matrix products over shifted maps take about half the time. On CPUs only.
3. Maps smaller than the window: XLA swaps map and window and loses a factor of ten. A product with
   the gathered neighbourhoods is used on every platform; so small a map costs nothing anywhere.

The convolution and its two gradients are primitives of `models.bilinear`.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from models import winograd
from models.bilinear import bilinear, trilinear
from models.layers import parameters

Image = Float[Array, "batch height width channels"]
ImageOut = Float[Array, "batch height_out width_out channels_out"]
Kernel = Float[Array, "3 3 channels channels_out"]


class Conv(nnx.Module):
    """3x3 convolution in `dtype`; `padding` is (before, after) on both spatial axes.

    init, zero: see `layers.parameters`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        init: str,
        dtype: str,
        zero: bool = False,
        stride: int = 1,
        padding: tuple[int, int] = (1, 1),
    ):
        self.stride, self.padding, self.dtype = stride, padding, dtype
        self.kernel, self.bias = parameters((3, 3, inputs, outputs), init=init, zero=zero)

    def __call__(self, x: Image) -> ImageOut:
        """Convolution of x, which is cast to `dtype`."""
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        if self.stride == 1 and self.padding == (1, 1):
            y = convolve(x, kernel)
        else:
            y = general(x, kernel, self.stride, self.padding)
        return y + self.bias[...].astype(self.dtype)


def convolve(x: Image, kernel: Kernel) -> Float[Array, "batch height width channels_out"]:
    """Stride 1, one pixel of zeros around."""
    height, width, channels = x.shape[1:]
    if height * width >= 9:
        return _value_p.bind(x, kernel)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifts, axis=-1) @ kernel.reshape(9 * channels, -1)


def general(x, kernel, stride=1, padding=(1, 1)):
    """XLA's own convolution, which `convolve` equals."""
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), (padding, padding), dimension_numbers=layout
    )


def _general_transposed(g, kernel):
    """XLA's own gradient of the input."""
    x = jax.ShapeDtypeStruct((*g.shape[:-1], kernel.shape[2]), g.dtype)
    return jax.linear_transpose(lambda x: general(x, kernel), x)(g)[0]


def _general_kernel(x, g):
    """XLA's own gradient of the kernel."""
    kernel = jax.ShapeDtypeStruct((3, 3, x.shape[-1], g.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda kernel: general(x, kernel), kernel)(g)[0]


def _wide(x, channels_out: int) -> bool:
    """Whether Winograd's algorithm pays. Not by the batch: an image is the same in any of them."""
    height, width, channels = x.shape[1:]
    even = height % 2 == width % 2 == 0
    wide = min(height, width) >= 8 and min(channels, channels_out) >= 128
    return even and wide and x.dtype == jnp.float32


def _parts(array, most: int):
    """The batch cut into equal parts of at most `most` images, or of one."""
    batch = len(array)
    count = next(n for n in range(1, batch + 1) if batch % n == 0 and batch // n <= max(most, 1))
    return array.reshape(count, batch // count, *array.shape[1:])


def _images(array, channels: int, largest: int) -> int:
    """How many images have `largest` numbers at this number of channels."""
    return largest // (array.shape[1] * array.shape[2] * channels)


def _winograd(one):
    """A value on CPUs by `one` of the functions of `winograd`, part by part of the batch."""

    def value(x, kernel):
        matrices = winograd.of_kernel(kernel)
        # The 16 matrices of a part stay in the cache.
        parts = _parts(x, _images(x, max(kernel.shape[2:]), 2**18))
        y = lax.map(lambda part: one(part, matrices), parts)
        return y.reshape(*x.shape[:-1], -1)

    return value


def _cpu_value(x, kernel):
    wide = _wide(x, kernel.shape[3])
    return (_winograd(winograd.convolve) if wide else general)(x, kernel)


def _cpu_transposed(g, kernel):
    wide = _wide(g, kernel.shape[2])
    return (_winograd(winograd.transposed) if wide else _general_transposed)(g, kernel)


def _cpu_kernel(x, g):
    wide, channels = _wide(x, g.shape[-1]), max(x.shape[-1], g.shape[-1])
    one = winograd.kernel_products if wide else _row_products
    most = _images(x, channels, 2**18 if wide else 2**17)
    x, g = _parts(x, most), _parts(g, most)
    if len(x) == 1:
        total = one(x[0], g[0])
    else:
        zeros = jnp.zeros(jax.eval_shape(one, x[0], g[0]).shape, jnp.float32)
        total, _ = lax.scan(lambda total, part: (total + one(*part), None), zeros, (x, g))
    return (winograd.to_kernel(total) if wide else total).astype(x.dtype)


def _cpus_kernel(x, g):
    return _row_products(x, g).astype(x.dtype)


def _row_products(x, g):
    """For each row of the window one product: x shifted up or down times g shifted sideways."""
    height, width, channels = x.shape[1:]
    x = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    g = jnp.pad(g, ((0, 0), (0, 0), (1, 1), (0, 0)))
    columns = jnp.concatenate([g[:, :, 2 - j : 2 - j + width] for j in range(3)], axis=-1)
    product = functools.partial(jnp.einsum, "bhwc,bhwd->cd", preferred_element_type=jnp.float32)
    rows = [product(x[:, i : i + height], columns) for i in range(3)]
    return jnp.stack(rows).reshape(3, channels, 3, -1).swapaxes(1, 2)


_value_p = bilinear("conv3x3", general, lambda x, k: (*x[:-1], k[3]), cpu=_cpu_value, cpus=general)
_transposed_p = bilinear(
    "conv3x3_transposed",
    _general_transposed,
    lambda g, k: (*g[:-1], k[2]),
    cpu=_cpu_transposed,
    cpus=_general_transposed,
)
_kernel_p = bilinear(
    "conv3x3_kernel",
    _general_kernel,
    lambda x, g: (3, 3, x[-1], g[-1]),
    cpu=_cpu_kernel,
    cpus=_cpus_kernel,
)
trilinear(_value_p, _transposed_p, _kernel_p)
