"""A directory of pictures: what a person looks at and other programs read."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Shaped, UInt8

from training.files import atomic_write, npz
from training.images import grid, save_png

# Pictures in grid.png, at most.
GRID_IMAGES = 100


def finished(out: epath.Path, count: int) -> bool:
    """Whether the pictures are complete: info.json is written last."""
    path = out / "info.json"
    return path.exists() and json.loads(path.read_text())["count"] == count


def store(
    out: epath.Path,
    arrays: dict[str, Shaped[np.ndarray, "count *rest"]],
    info: dict[str, Any],
    texts: Sequence[str] | None = None,
    shown: UInt8[np.ndarray, "shown height width channels"] | None = None,
) -> None:
    """Write 000000.png ..., samples.npz, grid.png and, last, info.json.

    Args:
        out: the directory; what is there of another number of pictures is replaced.
        arrays: of samples.npz, with the names of ADM's evaluation: arr_0 are the images, uint8,
            arr_1 their labels, if they have any.
        info: of info.json, with 'count'.
        texts: of each image, written under it in the grid.
        shown: what the grid shows in place of the first images.
    """
    # What it says is no longer so from here on; it comes back last.
    (out / "info.json").unlink(missing_ok=True)
    images = arrays["arr_0"]
    pictures = {f"{i:06d}.png": image for i, image in enumerate(images)}
    there = {path.name for path in out.glob("[0-9]*.png")}
    for name in there - pictures.keys():
        (out / name).unlink()
    for name in sorted(pictures.keys() - there):
        save_png(out / name, pictures[name])
    atomic_write(out / "samples.npz", npz(**arrays))
    texts = None if texts is None else list(texts[:GRID_IMAGES])
    shown = images[:GRID_IMAGES] if shown is None else shown
    save_png(out / "grid.png", grid(shown, labels=texts))
    atomic_write(out / "info.json", (json.dumps(info, indent=2) + "\n").encode())
