"""Features of sets of images, stored chunk by chunk, so that a job that was killed goes on."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jaxtyping import UInt8

from evaluation.extractors import Extractor
from evaluation.image_files import Images
from pipelines.chunks import Chunks
from pipelines.sampling import chunk_size
from training.clock import Clock, Progress, rate
from training.mesh import batch_sharding, replicated

log = logging.getLogger(__name__)


def extract(
    images: Images,
    extractor: Extractor,
    outputs: Sequence[str],
    directory: Callable[[int], epath.Path],
    *,
    batch_size: int,
    mesh: Mesh,
    clock: Clock | None = None,
) -> Chunks:
    """Features of all images, in chunks of a batch; those that are stored are not made again.

    With several processes each stores the rows of its own devices; the directory is shared.

    Args:
        images: read in ascending order.
        extractor: what sees them.
        outputs: of the extractor that are kept.
        directory: of the chunks, by the number of images in one.
        batch_size: images at a time, over all devices; rounded up to share evenly.
        mesh: devices.
        clock: counts the seconds of 'data', 'compile', 'step' and 'write'.
    """
    size = chunk_size(batch_size, mesh)
    chunks = Chunks(directory(size), size)
    if missing := chunks.missing(images.count):
        _extract(images, extractor, outputs, chunks, missing, mesh, clock or Clock())
    multihost_utils.sync_global_devices("features")
    return chunks


def _extract(
    images: Images,
    extractor: Extractor,
    outputs: Sequence[str],
    chunks: Chunks,
    missing: Sequence[int],
    mesh: Mesh,
    clock: Clock,
) -> None:
    rows = batch_sharding(mesh)
    program, params = _on_devices(extractor, tuple(outputs), mesh)
    progress = Progress(len(missing) * chunks.size, unit="image", every=5.0)
    with ThreadPoolExecutor(1) as reader:
        # The next chunk is read while the device is at this one.
        ahead = reader.submit(_LocalRows.read, images, chunks.rows(missing[0]), rows)
        for done, k in enumerate(missing, start=1):
            with clock("data"):
                local = ahead.result()
            if done < len(missing):
                ahead = reader.submit(_LocalRows.read, images, chunks.rows(missing[done]), rows)
            # Some products choose their precision when they are compiled.
            exact = jax.default_matmul_precision("highest")
            with clock("compile" if done == 1 else "step"), exact:
                found = jax.block_until_ready(program(params, local.place(rows)))
            with clock("write"):
                chunks.write(k, jax.device_put(chunks.rows(k), rows), **found)
            # Without the first one, which compiles.
            speed = rate((done - 1) * chunks.size, clock.totals()) or None
            progress.log(done * chunks.size, {} if speed is None else {"images/s": speed})
    progress.close()


@functools.lru_cache(maxsize=4)
def _on_devices(extractor: Extractor, outputs: tuple[str, ...], mesh: Mesh) -> tuple[Callable, Any]:
    """The program, compiled once for all sets of images, and its parameters."""

    def features(params, pixels):
        found = extractor.apply(params, pixels)
        return {name: found[name] for name in outputs}

    program = jax.jit(features, out_shardings=batch_sharding(mesh))
    return program, jax.device_put(extractor.params, replicated(mesh))


@dataclasses.dataclass(frozen=True)
class _LocalRows:
    """This process's images of a chunk."""

    shape: tuple[int, int, int, int]
    first: int
    images: UInt8[np.ndarray, "rows side side channels"]

    @classmethod
    def read(cls, images: Images, rows: np.ndarray, sharding: NamedSharding) -> "_LocalRows":
        shape = (len(rows), images.side, images.side, images.channels)
        parts = sharding.addressable_devices_indices_map(shape).values()
        bounds = [part[0].indices(len(rows))[:2] for part in parts]
        first, last = min(start for start, _ in bounds), max(stop for _, stop in bounds)
        # Chunks are of one size: the last one is filled up with the last image.
        wanted = np.minimum(rows[first:last], images.count - 1)
        start = int(wanted[0])
        return cls(shape, first, images.rows(start, int(wanted[-1]) + 1)[wanted - start])

    def place(self, sharding: NamedSharding) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(self.shape[0])
            return self.images[start - self.first : stop - self.first]

        return jax.make_array_from_callback(self.shape, sharding, part)


def set_aside(path: epath.Path, wrong: str) -> None:
    """Rename a damaged file, so that it is made anew and nothing is lost."""
    aside = path.with_name(f"{path.name}.damaged")
    log.warning("Kept as %s and computed anew: %s", aside.name, wrong)
    path.replace(aside)
