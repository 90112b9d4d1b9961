"""Encoded images of any kind to square uint8 arrays of one size."""

import io
import struct
import zlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

# What Pillow's readers raise on broken files of the common formats.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_MODES = {1: "L", 3: "RGB"}


class BadImageError(ValueError):
    """An image that cannot be decoded; the message says what is wrong with it."""


def to_array(
    image: bytes | UInt8[np.ndarray, "height width channels"], size: int, channels: int
) -> UInt8[np.ndarray, "{size} {size} {channels}"]:
    """The image as `channels` (1: grey, 3: RGB) times `size` by `size` pixels.

    `image` holds an encoded file or pixels. What already has the right size is not resampled.
    Raises BadImageError.
    """
    if isinstance(image, np.ndarray):
        if image.shape == (size, size, channels):
            return image
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    else:
        picture = _open(image)
    picture = center_crop(_convert(picture, _MODES[channels]), size)
    return np.asarray(picture).reshape(size, size, channels)


def header(data: bytes) -> tuple[str, str, int, int]:
    """(format, mode, width, height) in Pillow's words of an encoded image, not decoded.

    Raises BadImageError.
    """
    if not data:
        raise BadImageError("the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.format or "", image.mode, image.width, image.height
    except _BROKEN as error:
        raise BadImageError(str(error) or type(error).__name__) from error


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Resizes the shorter side to `size` and crops the other about its middle.

    Large images are first halved by a box filter, then resized by a bicubic one, as in ADM
    (Dhariwal & Nichol, 2021), so that images agree with published reference statistics.
    """
    if image.size == (size, size):
        return image
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _open(data: bytes) -> Image.Image:
    if not data:
        raise BadImageError("the file is empty")
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        if "exif" in image.info:
            # Photographs are stored as the sensor lay, with the rotation beside them.
            ImageOps.exif_transpose(image, in_place=True)
        return image
    except _BROKEN as error:
        raise BadImageError(str(error) or type(error).__name__) from error


def _convert(image: Image.Image, mode: str) -> Image.Image:
    """Any of Pillow's modes to grey or RGB; what is transparent is laid over white."""
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        image = _from_16_bit(image)
    elif image.mode == "F":
        raise BadImageError("floating-point pixels have no fixed range")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(mode)


def _from_16_bit(image: Image.Image) -> Image.Image:
    # Pillow's own conversion of these modes clips at 255 instead of scaling.
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise BadImageError(f"mode {image.mode} with values outside of 0..65535")
    return Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
