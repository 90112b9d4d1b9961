"""Results of a job row by row, in files of a chunk each, so that a killed job goes on."""

import io

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from training.files import atomic_write


def npz(**arrays: np.ndarray) -> bytes:
    """The bytes of an .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


class Chunks:
    """Rows 0, 1, ... in chunks of `size`: <directory>/<chunk>.<process>.npz.

    Each process stores the rows of its own devices; the directory is shared between hosts.
    """

    def __init__(self, directory: epath.Path, size: int):
        self.directory, self.size = epath.Path(directory), size

    def rows(self, k: int) -> np.ndarray:
        """Numbers of the rows of chunk k."""
        return np.arange(k * self.size, (k + 1) * self.size, dtype=np.int32)

    def missing(self, count: int) -> list[int]:
        """Chunks of the first `count` rows that are not stored whole; the same on all processes."""
        there = np.zeros(-(-count // self.size), np.int64)
        for k, paths in self._stored().items():
            if k < len(there):
                there[k] = len(np.unique(_read(paths)["row"]))
        return np.flatnonzero(multihost_utils.broadcast_one_to_all(there) < self.size).tolist()

    def write(self, k: int, row: jax.Array, **arrays: jax.Array) -> None:
        """Store this process's rows of chunk k; `row` has their numbers."""
        local = {
            name: [
                np.asarray(shard.data) for shard in array.addressable_shards if not shard.replica_id
            ]
            for name, array in {"row": row, **arrays}.items()
        }
        if local["row"]:
            data = npz(**{name: np.concatenate(parts) for name, parts in local.items()})
            atomic_write(self.directory / f"{k:06d}.{jax.process_index()}.npz", data)

    def read(self, count: int) -> dict[str, np.ndarray]:
        """The first `count` rows in order, of all processes."""
        stored, parts = self._stored(), []
        for k in range(-(-count // self.size)):
            arrays = _read(stored[k])
            _, order = np.unique(arrays.pop("row"), return_index=True)
            parts.append({name: array[order] for name, array in arrays.items()})
        return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}

    def _stored(self) -> dict[int, list[epath.Path]]:
        stored: dict[int, list[epath.Path]] = {}
        for path in sorted(self.directory.glob("*.npz")):
            stored.setdefault(int(path.name.split(".")[0]), []).append(path)
        return stored


def _read(paths: list[epath.Path]) -> dict[str, np.ndarray]:
    files = [np.load(io.BytesIO(path.read_bytes())) for path in paths]
    return {name: np.concatenate([file[name] for file in files]) for name in files[0].files}
