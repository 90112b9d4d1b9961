"""Random changes of training images: (uint8 image, numpy Generator) -> uint8 image.

The generator that an augmentation is given follows from the seed and the example's position in
the stream, so a resumed run sees the same changes. Augmentations are sent to worker processes
and so must be picklable.
"""

import dataclasses

import numpy as np
from jaxtyping import UInt8


@dataclasses.dataclass(frozen=True)
class Flip:
    """Mirrors left and right with the given probability."""

    probability: float

    def __call__(
        self, image: UInt8[np.ndarray, "height width channels"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "height width channels"]:
        """The image or its mirror image."""
        return image[:, ::-1] if rng.random() < self.probability else image


def flip(probability: float = 0.5) -> Flip:
    """Mirror images, for data without left and right (faces and objects; not digits or text)."""
    if not 0 <= probability <= 1:
        raise ValueError(f"flip: probability must be between 0 and 1, not {probability}")
    return Flip(float(probability))
