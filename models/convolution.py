"""3x3 convolution without the cases in which XLA is slow on a CPU.

1. Wide layers: Winograd's algorithm takes half to two thirds of the time, for the value and for
   both gradients. On CPUs only.
2. Gradient of the kernel of other layers: XLA's takes the whole feature map as the window. Three
   matrix products over shifted maps take about half the time. On CPUs only.
3. Maps smaller than the window: XLA swaps map and window and loses a factor of ten. A product with
   the gathered neighbourhoods is used on every platform; so small a map costs nothing anywhere.

On CPUs the convolution and the gradient of its kernel are two JAX primitives and no `custom_vjp`:
both are bilinear and their gradients are each other, so forward mode, higher derivatives and vmap
work.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from models import winograd
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
        return (_convolve_p.bind if jax.default_backend() == "cpu" else general)(x, kernel)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifts, axis=-1) @ kernel.reshape(9 * channels, -1)


def general(x, kernel, stride=1, padding=(1, 1)):
    """XLA's own convolution, which `convolve` equals."""
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), (padding, padding), dimension_numbers=layout
    )


def _wide(x, channels_out: int) -> bool:
    """Whether Winograd's algorithm pays. Not by the batch: an image is the same in any of them."""
    height, width, channels = x.shape[1:]
    even = height % 2 == width % 2 == 0
    return even and min(height, width) >= 8 and min(channels, channels_out) >= 128


def _parts(array, largest: int, channels: int):
    """The batch cut into equal parts of at most `largest` positions times `channels`, or images."""
    batch, height, width, _ = array.shape
    # A loop over a batch that lies on several devices would move it between them.
    most = largest // (height * width * channels) if jax.device_count() == 1 else batch
    count = next(
        n for n in range(1, batch + 1) if batch % n == 0 and (batch // n <= most or n == batch)
    )
    return array.reshape(count, -1, *array.shape[1:])


def _value(x, kernel):
    if not _wide(x, kernel.shape[-1]):
        return general(x, kernel)
    matrices = winograd.of_kernel(kernel)
    # 16 such matrices of a part stay in the cache.
    parts = _parts(x, 2**18, max(kernel.shape[2:]))
    y = lax.map(lambda part: winograd.convolve(part, matrices), parts)
    return y.reshape(*x.shape[:-1], -1)


def _kernel_gradient(x, g):
    """Gradient of the kernel from the gradient g of the value."""
    wide, channels = _wide(x, g.shape[-1]), max(x.shape[-1], g.shape[-1])
    one = winograd.kernel_products if wide else _row_products
    x, g = (_parts(array, 2**18 if wide else 2**17, channels) for array in (x, g))
    if len(x) == 1:
        total = one(x[0], g[0])
    else:
        zeros = jnp.zeros(jax.eval_shape(one, x[0], g[0]).shape, x.dtype)
        total, _ = lax.scan(lambda total, part: (total + one(*part), None), zeros, (x, g))
    return winograd.to_kernel(total) if wide else total


def _row_products(x, g):
    """For each row of the window one product: x shifted up or down times g shifted sideways."""
    height, width, channels = x.shape[1:]
    x = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    g = jnp.pad(g, ((0, 0), (0, 0), (1, 1), (0, 0)))
    columns = jnp.concatenate([g[:, :, 2 - j : 2 - j + width] for j in range(3)], axis=-1)
    rows = [jnp.einsum("bhwc,bhwd->cd", x[:, i : i + height], columns) for i in range(3)]
    return jnp.stack(rows).reshape(3, channels, 3, -1).swapaxes(1, 2)


def _flip(kernel):
    """The kernel of the transposed convolution."""
    return jnp.flip(kernel, (0, 1)).swapaxes(2, 3)


def _bilinear(name: str, function, plain, shape) -> Primitive:
    """plain: the same in terms that vmap may take."""
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(primitive.bind))
    primitive.def_abstract_eval(lambda a, b: a.update(shape=shape(a.shape, b.shape)))
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    batching.primitive_batchers[primitive] = lambda arguments, axes: (
        jax.vmap(plain, in_axes=axes)(*arguments),
        0,
    )
    return primitive


_convolve_p = _bilinear("conv3x3", _value, general, lambda x, k: (*x[:-1], k[-1]))
_kernel_p = _bilinear(
    "conv3x3_kernel", _kernel_gradient, _row_products, lambda x, g: (3, 3, x[-1], g[-1])
)
ad.defbilinear(
    _convolve_p,
    lambda g, x, kernel: _convolve_p.bind(g, _flip(kernel)),
    lambda g, x, kernel: _kernel_p.bind(x, g),
)
ad.defbilinear(
    _kernel_p,
    lambda kernel, x, g: _convolve_p.bind(g, _flip(kernel)),
    lambda kernel, x, g: _convolve_p.bind(x, kernel),
)
