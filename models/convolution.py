"""3x3 convolution without the two cases in which XLA is slow on a CPU.

1. Gradient of the kernel: XLA's takes the whole feature map as the window. Three matrix products
   over shifted maps take about half the time. On CPUs only; accelerators run XLA's own convolution.
2. Maps smaller than the window: XLA swaps map and window and loses a factor of ten. A product with
   the gathered neighbourhoods is used on every platform; so small a map costs nothing anywhere.

The first is a JAX primitive and no `custom_vjp`: forward mode, second derivatives and vmap work.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

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


def _transpose_x(g, x, kernel):
    return jax.linear_transpose(lambda x: general(x, kernel), x.aval)(g)[0]


def _transpose_kernel(g, x, _):
    """For each row of the window one product: x shifted up or down times g shifted sideways."""
    height, width, channels = x.shape[1:]
    x = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    g = jnp.pad(g, ((0, 0), (0, 0), (1, 1), (0, 0)))
    columns = jnp.concatenate([g[:, :, 2 - j : 2 - j + width] for j in range(3)], axis=-1)
    rows = [jnp.einsum("bhwc,bhwd->cd", x[:, i : i + height], columns) for i in range(3)]
    return jnp.stack(rows).reshape(3, channels, 3, -1).swapaxes(1, 2)


def _batch(arguments, axes):
    return jax.vmap(general, in_axes=axes)(*arguments), 0


_convolve_p = Primitive("conv3x3")
_convolve_p.def_impl(jax.jit(_convolve_p.bind))
_convolve_p.def_abstract_eval(lambda x, kernel: x.update(shape=(*x.shape[:-1], kernel.shape[-1])))
mlir.register_lowering(_convolve_p, mlir.lower_fun(general, multiple_results=False))
ad.defbilinear(_convolve_p, _transpose_x, _transpose_kernel)
batching.primitive_batchers[_convolve_p] = _batch
