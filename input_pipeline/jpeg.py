"""What storing as JPEG does to images, on the device: all steps that lose something."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from input_pipeline.resize import resize

# Quantisation of quality 50 (ITU-T T.81, annex K.1), rows are vertical frequencies.
_LUMA = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
_CHROMA = np.full((8, 8), 99)
_CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
# To luma and the two colour differences (JFIF: ITU-R BT.601 at full range).
_TO_YCC = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)
_TO_RGB = np.linalg.inv(_TO_YCC)


@functools.cache
def _dct() -> np.ndarray:
    """The orthonormal DCT-II of 8 numbers, as a matrix."""
    k, n = np.mgrid[:8, :8]
    matrix = np.sqrt(2 / 8) * np.cos(np.pi * k * (2 * n + 1) / 16)
    matrix[0] /= np.sqrt(2)
    return matrix.astype(np.float32)


def jpeg(
    images: Float[Array, "batch height width 3"],
    quality: Float[Array, " batch"],
    subsampling: bool = True,
) -> Float[Array, "batch height width 3"]:
    """Images as they come back from a JPEG file of their own quality, whole numbers 0 to 255.

    Quality scales the tables as libjpeg does; with `subsampling` the colours have half the
    resolution (4:2:0), as files usually are. Gradients are zero.

    Args:
        images: 0 to 255, any sides; inside they are extended to whole blocks by their border.
        quality: 1 to 100.
    """
    height, width = images.shape[1:3]
    block = 16 if subsampling else 8
    extend = ((0, 0), (0, -height % block), (0, -width % block), (0, 0))
    ycc = jnp.pad(jnp.round(images), extend, mode="edge") @ _TO_YCC.T.astype(np.float32)
    luma, chroma = jnp.round(ycc[..., :1]) - 128, jnp.round(ycc[..., 1:])
    scale = jnp.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    if subsampling:
        b, h, w, c = chroma.shape
        chroma = jnp.round(chroma.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4)))
    luma = _quantised(luma, _LUMA, scale)
    chroma = _quantised(chroma, _CHROMA, scale)
    if subsampling:
        chroma = resize(chroma, luma.shape[1:3], "bilinear")
    ycc = jnp.concatenate([luma + 128, chroma], axis=-1)
    rgb = jnp.round(ycc @ _TO_RGB.T.astype(np.float32))
    return jnp.clip(rgb, 0, 255)[:, :height, :width]


def _quantised(
    x: Float[Array, "batch height width channels"], table: np.ndarray, scale: Float[Array, " batch"]
) -> Float[Array, "batch height width channels"]:
    """Each block of 8 x 8 with its frequencies rounded to multiples of the scaled table."""
    steps = jnp.clip(jnp.floor((table * scale[:, None, None] + 50) / 100), 1, 255)
    steps = steps[:, None, :, None, :, None]
    b, h, w, c = x.shape
    blocks = x.reshape(b, h // 8, 8, w // 8, 8, c)
    exact = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    waves = exact("ui,vj,bhiwjc->bhuwvc", _dct(), _dct(), blocks)
    waves = jnp.round(waves / steps) * steps
    blocks = exact("ui,vj,bhuwvc->bhiwjc", _dct(), _dct(), waves)
    return jnp.clip(jnp.round(blocks), -128, 127).reshape(b, h, w, c)
