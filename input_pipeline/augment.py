"""Random changes of training images: (uint8 image, numpy Generator) -> uint8 image.

The generator that an augmentation is given follows from the seed and the example's position in
the stream, so a resumed run sees the same changes. Augmentations are sent to worker processes
and so must be picklable.
"""

import dataclasses

import numpy as np
from jaxtyping import UInt8
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Flip:
    """Mirrors left and right with the given probability."""

    probability: float

    def __call__(
        self, image: UInt8[np.ndarray, "height width channels"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width channels"]:
        """The image or its mirror image."""
        if rng.random() >= self.probability:
            return image
        # To copy image[:, ::-1] takes twice the time: NumPy copies it byte by byte.
        return image.take(np.arange(image.shape[1] - 1, -1, -1), axis=1)


def flip(probability: float = 0.5) -> Flip:
    """Mirror images, for data without left and right (faces and objects; not digits or text)."""
    if not 0 <= probability <= 1:
        raise ValueError(f"flip: probability must be between 0 and 1, not {probability}")
    return Flip(float(probability))


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Cuts out a square of random size at a random place and brings it back to the image's size."""

    scale: tuple[float, float]
    pad: int

    def __call__(
        self, image: UInt8[np.ndarray, "size size channels"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "size size channels"]:
        """The piece of the image, continued by its mirror image where it is padded."""
        size = image.shape[0]
        low, high = (max(1, round(size * scale)) for scale in self.scale)
        side = int(rng.integers(low, high + 1))
        top, left = rng.integers(-self.pad, size - side + self.pad + 1, 2).tolist()
        rows, columns = (
            _mirrored(np.arange(start, start + side), size, self.pad) for start in (top, left)
        )
        piece = image[rows[:, None], columns]
        if side == size:
            return piece
        picture = Image.fromarray(piece[..., 0] if piece.shape[-1] == 1 else piece)
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
        return np.asarray(picture).reshape(image.shape)


def random_crop(scale: tuple[float, float] = (0.8, 1.0), pad: int = 0) -> RandomCrop:
    """A random piece of each image, resized to the whole, as in ADM (Dhariwal & Nichol, 2021).

    `random_crop(scale=(1.0, 1.0), pad=4)` is the usual shift of small images instead. The piece is
    cut from the image at its final size, so that one of a smaller scale is enlarged.

    Args:
        scale: smallest and largest side of the piece as a part of the image's.
        pad: pixels by which the piece may reach over each edge, where the image is mirrored.
    """
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(
            f"random_crop: scale must be (low, high) with 0 < low <= high <= 1: {scale}"
        )
    if pad < 0:
        raise ValueError(f"random_crop: pad must be 0 or more pixels, not {pad}")
    return RandomCrop(tuple(scale), pad)


def _mirrored(places: np.ndarray, size: int, pad: int) -> np.ndarray:
    """Pixels inside of the image for places up to `pad` beyond its edges (numpy's 'reflect')."""
    if pad >= size:
        raise ValueError(f"random_crop: pad = {pad} must be less than the image's {size} pixels")
    last = size - 1
    return last - np.abs(last - np.abs(places))
