"""Results of a job row by row, in files of a chunk each, so that a killed job goes on."""

import logging
import zipfile
import zlib
from collections.abc import Iterator

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from training.files import atomic_write, npz

log = logging.getLogger(__name__)


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
        """Chunks of the first `count` rows that are not stored whole; the same on all processes.

        A file that is damaged is set aside, renamed to <file>.damaged, with a warning.
        """
        there = np.zeros(-(-count // self.size), np.int64)
        if jax.process_index() == 0:
            for path in self.directory.glob("*.npz"):
                _set_aside_if_damaged(path)
            for k, paths in self._stored().items():
                if k < len(there):
                    there[k] = len(np.unique(_read(paths, only="row")["row"]))
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
        parts = list(self.each(count))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def each(self, count: int) -> Iterator[dict[str, np.ndarray]]:
        """The first `count` rows in order, of all processes, a chunk at a time."""
        stored = self._stored()
        for k in range(-(-count // self.size)):
            arrays = _in_order(stored[k])
            yield {name: array[: count - k * self.size] for name, array in arrays.items()}

    def read_chunk(self, k: int) -> dict[str, np.ndarray]:
        """The rows of chunk k in order, of all processes."""
        return _in_order(sorted(self.directory.glob(f"{k:06d}.*.npz")))

    def _stored(self) -> dict[int, list[epath.Path]]:
        stored: dict[int, list[epath.Path]] = {}
        for path in sorted(self.directory.glob("*.npz")):
            stored.setdefault(int(path.name.split(".")[0]), []).append(path)
        return stored


def _in_order(paths: list[epath.Path]) -> dict[str, np.ndarray]:
    arrays = _read(paths)
    _, order = np.unique(arrays.pop("row"), return_index=True)
    return {name: array[order] for name, array in arrays.items()}


def _read(paths: list[epath.Path], only: str = "") -> dict[str, np.ndarray]:
    """Arrays of all files put together, or only one of them, without reading the others."""
    parts: dict[str, list[np.ndarray]] = {}
    for path in paths:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            for name in [only] if only else arrays.files:
                parts.setdefault(name, []).append(arrays[name])
    return {name: np.concatenate(part) for name, part in parts.items()}


def _set_aside_if_damaged(path: epath.Path) -> None:
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        bad = error
    if bad:
        log.warning("%s is damaged (%s): renamed to %s.damaged, made again", path, bad, path.name)
        path.replace(path.with_name(f"{path.name}.damaged"))
