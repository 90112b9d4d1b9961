"""Handwritten digits: 1,797 real 8x8 scans that come with scikit-learn."""

import dataclasses
import zlib
from collections.abc import Collection

import numpy as np
from jaxtyping import Int, UInt8

from input_pipeline.sources.base import Source, check_name

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_CAPTIONS = ("a handwritten digit {}", "the digit {}", "a scan of a handwritten {}")
# One in five of each class is kept for testing.
_TEST_FRACTION = 0.2


@dataclasses.dataclass(frozen=True, eq=False)
class Digits(Source):
    """8x8 grey images with labels 0 to 9 and captions."""

    name: str
    images: UInt8[np.ndarray, "examples 8 8 1"]
    labels: Int[np.ndarray, "examples"]
    fields = ("image", "label", "caption")
    class_names = _WORDS

    @property
    def fingerprint(self) -> str:
        """Checksum of pixels and labels."""
        checksum = zlib.crc32(self.labels.astype("<i4").tobytes(), zlib.crc32(self.images))
        return f"digits-{len(self)}-{checksum:08x}"

    def __len__(self) -> int:
        return len(self.labels)

    def example(self, index: int, fields: Collection[str]) -> dict:
        """Image, label and caption."""
        label = int(self.labels[index])
        caption = _CAPTIONS[index % len(_CAPTIONS)].format(_WORDS[label])
        return {"image": self.images[index], "label": label, "caption": caption}


def digits(split: str = "train") -> Digits:
    """Optical recognition of handwritten digits (Alpaydin & Kaynak, 1998), as in scikit-learn.

    `split`: 'train' (four fifths of each class), 'test' (the others) or 'all'.
    """
    from sklearn.datasets import load_digits  # slow to import, and workers do not need it

    check_name("digits(split=...)", split, ("train", "test", "all"))
    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)[..., None]
    is_test = np.zeros(len(images), bool)
    rng = np.random.default_rng(0)
    for label in range(10):
        members = rng.permutation(np.flatnonzero(data.target == label))
        is_test[members[: round(_TEST_FRACTION * len(members))]] = True
    chosen = {"train": ~is_test, "test": is_test, "all": np.ones_like(is_test)}[split]
    return Digits(f"digits(split={split!r})", images[chosen], data.target[chosen])
