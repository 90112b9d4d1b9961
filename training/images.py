"""Images on disk: PNG files and grids that a person can read."""

import io
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from training.files import atomic_write

_GAP = 2
_LABEL_HEIGHT = 14
# Neither black nor white, so that the edges of an image show.
_BACKGROUND = 208


def grid(
    images: UInt8[np.ndarray, "count height width channels"],
    columns: int = 0,
    scale: int = 0,
    labels: Sequence[str] | None = None,
) -> UInt8[np.ndarray, "grid_height grid_width channels"]:
    """Images side by side on light grey, row by row, 2 pixels apart.

    Args:
        images: grey (1 channel) or RGB.
        columns: images in a row; 0: as square as possible.
        scale: every pixel becomes scale x scale (nearest neighbour); 0: the least that makes the
            smaller side 64 pixels or more.
        labels: a text under each image, in lines of its width.
    """
    count, height, width, channels = images.shape
    if count == 0:
        raise ValueError("grid() needs at least one image")
    if labels is not None and len(labels) != count:
        raise ValueError(f"{len(labels)} labels for {count} images")
    columns = columns or int(np.ceil(np.sqrt(count)))
    scale = scale or max(1, -(-64 // min(height, width)))
    tiles = images.repeat(scale, axis=1).repeat(scale, axis=2)

    font = ImageFont.load_default(size=10)
    wrapped = [_wrap(text, width * scale, font) for text in labels or ()]
    tile_height = height * scale + _LABEL_HEIGHT * max(map(len, wrapped), default=0) + _GAP
    tile_width = width * scale + _GAP
    rows = -(-count // columns)
    shape = (rows * tile_height + _GAP, columns * tile_width + _GAP, channels)
    sheet = np.full(shape, _BACKGROUND, np.uint8)
    corners = [
        (_GAP + (i // columns) * tile_height, _GAP + (i % columns) * tile_width)
        for i in range(count)
    ]
    for tile, (top, left) in zip(tiles, corners, strict=True):
        sheet[top : top + height * scale, left : left + width * scale] = tile
    if labels is None:
        return sheet

    picture = _to_pil(sheet)
    draw = ImageDraw.Draw(picture)
    ink = 0 if channels == 1 else (0, 0, 0)
    for lines, (top, left) in zip(wrapped, corners, strict=True):
        for number, line in enumerate(lines):
            middle = (left + width * scale // 2, top + height * scale + 1 + number * _LABEL_HEIGHT)
            draw.text(middle, line, fill=ink, font=font, anchor="ma")
    return np.asarray(picture).reshape(sheet.shape)


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """Lines of whole words, as long as fits; a word that is wider stands alone."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def encode_png(image: UInt8[np.ndarray, "height width channels"]) -> bytes:
    """An image (1 or 3 channels) as the bytes of a PNG file, without loss."""
    buffer = io.BytesIO()
    _to_pil(image).save(buffer, format="PNG")
    return buffer.getvalue()


def save_png(
    path: str | os.PathLike[str], image: UInt8[np.ndarray, "height width channels"]
) -> None:
    """Write a PNG file; a reader finds it whole or not at all."""
    atomic_write(path, encode_png(image))


def _to_pil(image: UInt8[np.ndarray, "height width channels"]) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
