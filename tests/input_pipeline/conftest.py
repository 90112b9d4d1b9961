"""Image folders that the tests of this package read."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from input_pipeline.sources.base import Source


def png(pixels: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", **options)
    return file.getvalue()


class Numbers(Source):
    """Image i is filled with i, has label i and caption 'number i'."""

    fields = ("image", "label", "caption")

    def __init__(self, count: int, size: int = 2):
        self.name = f"numbers({count})"
        self.count = count
        self.size = size
        self.class_names = tuple(map(str, range(count)))

    @property
    def fingerprint(self) -> str:
        return self.name

    def __len__(self) -> int:
        return self.count

    def example(self, index, fields) -> dict:
        image = np.full((self.size, self.size, 1), index, np.uint8)
        return {"image": image, "label": index, "caption": f"number {index}"}


@pytest.fixture
def numbers():
    return Numbers


@pytest.fixture
def photos(tmp_path):
    """Two splits, two classes, captions in sidecars (train) and in metadata.jsonl (test)."""
    root = tmp_path / "photos"
    rng = np.random.default_rng(0)
    rows = []
    for split, count in (("train", 5), ("test", 2)):
        for kind in ("dog", "cat"):
            folder = root / split / kind
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                (folder / f"{number:02}.png").write_bytes(png(pixels))
                caption = f"{kind} number {number}"
                if split == "train":
                    (folder / f"{number:02}.txt").write_text(caption + "\n")
                else:
                    rows.append({"file_name": f"{kind}/{number:02}.png", "caption": caption})
    (root / "test" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / ".DS_Store").write_bytes(b"?")
    (root / "train" / "cat" / "._00.png").write_bytes(b"?")
    return root
