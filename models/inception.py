"""Inception-V3 as FID knows it: the network of 2015 with 1008 outputs (Szegedy et al., 2015).

It differs from the published network in three places, and every reported FID has that in it:
averages at the border are over the pixels that are there, the last block pools by maximum, and
there are 1008 classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from models.functional import Network, functional, normal

# Pixels a side that the network is given.
SIDE = 299
POOL3, SPATIAL, CLASSES = 2048, 2023, 1008
# Channels that sFID is of (Nash et al., 2021).
_SPATIAL_CHANNELS = 7
_EPS = 1e-3
Image = Float[Array, "batch height width channels"]
ImageOut = Float[Array, "batch height_out width_out channels_out"]


class InceptionOutput(NamedTuple):
    """What `Inception` gives.

    pool3: means over positions of the last block, what FID is of.
    spatial: 17 x 17 positions, 7 channels each, flattened in this order, what sFID is of.
    logits: without the bias of the last layer, what the Inception score is of.
    """

    pool3: Float[Array, "batch 2048"]
    spatial: Float[Array, "batch 2023"]
    logits: Float[Array, "batch 1008"]


class BatchNorm(nnx.Module):
    """Batch normalization with statistics that are kept (Ioffe and Szegedy, 2015)."""

    def __init__(self, channels: int):
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))
        self.mean, self.variance = nnx.Param(jnp.zeros(channels)), nnx.Param(jnp.ones(channels))

    def __call__(self, x: Image) -> Image:
        """Channel by channel (x - mean) / sqrt(variance + eps) * scale + bias."""
        gain = self.scale[...] * lax.rsqrt(self.variance[...] + _EPS)
        return x * gain + (self.bias[...] - self.mean[...] * gain)


class Kernel(nnx.Module):
    """The kernel of a layer without bias."""

    def __init__(self, *shape: int):
        self.kernel = normal(shape, (2 / np.prod(shape[:-1])) ** 0.5)


class Conv(nnx.Module):
    """Convolution, batch norm, ReLU. padded: odd windows keep the size."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        window: int | tuple[int, int] = 1,
        *,
        stride: int = 1,
        padded: bool = True,
    ):
        window = (window, window) if isinstance(window, int) else window
        self.stride = stride
        self.padding = tuple((n // 2, n // 2) if padded else (0, 0) for n in window)
        self.conv, self.norm = Kernel(*window, inputs, outputs), BatchNorm(outputs)

    def __call__(self, x: Image) -> ImageOut:
        """Products are exact float32 on every device: see `Inception`."""
        x = lax.conv_general_dilated(
            x,
            self.conv.kernel[...],
            (self.stride, self.stride),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=lax.Precision.HIGHEST,
        )
        return jax.nn.relu(self.norm(x))


class BlockA(nnx.Module):
    """Mixed_5b to 5d, 35 x 35: windows of 1, 5 and twice 3, and an average."""

    def __init__(self, inputs: int, pooled: int):
        self.branch1x1 = Conv(inputs, 64)
        self.branch5x5_1, self.branch5x5_2 = Conv(inputs, 48), Conv(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inputs, 64), Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3)
        self.branch_pool = Conv(inputs, pooled)

    def __call__(self, x: Image) -> ImageOut:
        """224 + pooled channels."""
        return _joined(
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(_average(x)),
        )


class BlockB(nnx.Module):
    """Mixed_6a: to 17 x 17."""

    def __init__(self, inputs: int):
        self.branch3x3 = Conv(inputs, 384, 3, stride=2, padded=False)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inputs, 64), Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2, padded=False)

    def __call__(self, x: Image) -> ImageOut:
        """480 channels more than x."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return _joined(self.branch3x3(x), double, _maximum(x, 2))


class BlockC(nnx.Module):
    """Mixed_6b to 6e, 17 x 17: windows of 7 as a row and a column, once and twice."""

    def __init__(self, width: int):
        row, column = (1, 7), (7, 1)
        self.branch1x1 = Conv(768, 192)
        self.branch7x7_1, self.branch7x7_2 = Conv(768, width), Conv(width, width, row)
        self.branch7x7_3 = Conv(width, 192, column)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Conv(768, width), Conv(width, width, column)
        self.branch7x7dbl_3 = Conv(width, width, row)
        self.branch7x7dbl_4 = Conv(width, width, column)
        self.branch7x7dbl_5 = Conv(width, 192, row)
        self.branch_pool = Conv(768, 192)

    def __call__(self, x: Image) -> ImageOut:
        """768 channels, of which the first 192 are of branch1x1."""
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        return _joined(
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            self.branch_pool(_average(x)),
        )


class BlockD(nnx.Module):
    """Mixed_7a: to 8 x 8."""

    def __init__(self):
        self.branch3x3_1 = Conv(768, 192)
        self.branch3x3_2 = Conv(192, 320, 3, stride=2, padded=False)
        self.branch7x7x3_1, self.branch7x7x3_2 = Conv(768, 192), Conv(192, 192, (1, 7))
        self.branch7x7x3_3 = Conv(192, 192, (7, 1))
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2, padded=False)

    def __call__(self, x: Image) -> ImageOut:
        """1280 channels."""
        long = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return _joined(self.branch3x3_2(self.branch3x3_1(x)), long, _maximum(x, 2))


class BlockE(nnx.Module):
    """Mixed_7b and 7c, 8 x 8: rows and columns of 3 side by side. pool: theirs differ."""

    def __init__(self, inputs: int, pool: str):
        self.pool = {"average": _average, "maximum": _maximum}[pool]
        self.branch1x1 = Conv(inputs, 320)
        self.branch3x3_1 = Conv(inputs, 384)
        self.branch3x3_2a, self.branch3x3_2b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inputs, 448), Conv(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))
        self.branch_pool = Conv(inputs, 192)

    def __call__(self, x: Image) -> ImageOut:
        """2048 channels."""
        one = self.branch3x3_1(x)
        two = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return _joined(
            self.branch1x1(x),
            *(self.branch3x3_2a(one), self.branch3x3_2b(one)),
            *(self.branch3x3dbl_3a(two), self.branch3x3dbl_3b(two)),
            self.branch_pool(self.pool(x)),
        )


class Inception(nnx.Module):
    """Images of 299 x 299 to features; its layers have the names of torchvision's.

    All of it is float32 with products in full precision: where a device would take fewer bits
    (TF32, bfloat16) the features move, and FID with them.
    """

    def __init__(self):
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2, padded=False)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, padded=False)
        self.Mixed_5b, self.Mixed_5c = BlockA(192, 32), BlockA(256, 64)
        self.Mixed_5d = BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c = BlockC(128), BlockC(160)
        self.Mixed_6d, self.Mixed_6e = BlockC(160), BlockC(192)
        self.Mixed_7a = BlockD()
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, "average"), BlockE(2048, "maximum")
        self.fc = Kernel(POOL3, CLASSES)

    def __call__(
        self, x: Float[Array, "batch 299 299 3"], *, rngs: nnx.Rngs | None = None
    ) -> InceptionOutput:
        """x: RGB in [-1, 1], scaled as the protocol says. rngs: not used."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_maximum(x, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(_maximum(x, 2))))
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))))
        # The block begins with its branch1x1, which is called 'mixed_6/conv' in FID's own graph.
        spatial = x[..., :_SPATIAL_CHANNELS].reshape(len(x), -1)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))
        pool3 = x.mean((1, 2))
        logits = jnp.matmul(pool3, self.fc.kernel[...], precision=lax.Precision.HIGHEST)
        return InceptionOutput(pool3, spatial, logits)


def make_inception() -> Network:
    """The network as pure functions."""
    return functional(lambda rngs: Inception())


def _joined(*branches: Array) -> Array:
    return jnp.concatenate(branches, axis=-1)


def _average(x: Image) -> Image:
    """Mean of the 3 x 3 neighbours; at the border of those that are there."""
    sums = lax.reduce_window(
        x, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    )
    rows, columns = (_neighbours(n) for n in x.shape[1:3])
    return sums / (rows[:, None, None] * columns[:, None])


def _neighbours(length: int) -> np.ndarray:
    """How many of three in a row are there."""
    return np.convolve(np.ones(length, np.float32), np.ones(3, np.float32), "same")


def _maximum(x: Image, stride: int = 1) -> ImageOut:
    """Largest of the 3 x 3 neighbours; with a stride only windows that are whole."""
    around: Sequence[tuple[int, int]] = ((1, 1) if stride == 1 else (0, 0),) * 2
    return lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, stride, stride, 1), ((0, 0), *around, (0, 0))
    )
