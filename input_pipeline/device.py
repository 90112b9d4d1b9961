"""Host batches to sharded device batches, ahead of the step that needs them."""

import queue
import threading
import time
from types import TracebackType

import jax
import numpy as np

from input_pipeline.loader import Loader


class DeviceBatches:
    """Iterator over (global batch, loader state after it), filled by a thread.

    Reading, decoding and the transfer to the devices overlap the step. The loader is the thread's
    own as long as this is open: restore it before, and take its state from what is returned here.

    Attributes:
        waited: seconds that the last `next` waited for its batch.
    """

    def __init__(self, loader: Loader, sharding: jax.sharding.Sharding, depth: int = 2):
        if depth < 1:
            raise ValueError(f"depth (data.prefetch): at least 1 batch, not {depth}")
        self.waited = 0.0
        self._loader = loader
        self._sharding = sharding
        self._ready = queue.SimpleQueue()
        self._free = threading.Semaphore(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="device-batches", daemon=True)
        self._thread.start()

    def __iter__(self) -> "DeviceBatches":
        return self

    def __next__(self) -> tuple[dict[str, jax.Array | np.ndarray], dict]:
        if self._closed.is_set():
            raise StopIteration
        start = time.perf_counter()
        item = self._ready.get()
        self.waited = time.perf_counter() - start
        if isinstance(item, Exception):
            self.close()
            raise item
        self._free.release()
        return item

    def close(self) -> None:
        """Ends the thread and closes the loader."""
        self._closed.set()
        self._free.release()
        self._thread.join()
        self._loader.close()

    def __enter__(self) -> "DeviceBatches":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _fill(self) -> None:
        try:
            while True:
                self._free.acquire()
                if self._closed.is_set():
                    return
                batch = next(self._loader)
                self._ready.put((self._put(batch), self._loader.state()))
        except Exception as error:  # raised again by __next__, StopIteration too
            self._ready.put(error)

    def _put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array | np.ndarray]:
        rows = len(next(iter(batch.values())))
        if rows != self._loader.local_batch_size:
            raise ValueError(
                f"a batch of {rows} rows at the end of the last epoch; devices get full batches "
                f"of {self._loader.local_batch_size} only, so read with epochs=None, or use the "
                "loader itself"
            )

        def put(local: np.ndarray) -> jax.Array | np.ndarray:
            if local.dtype.kind in "US":
                return local
            shape = (self._loader.batch_size, *local.shape[1:])
            return jax.make_array_from_process_local_data(self._sharding, local, shape)

        return {field: put(local) for field, local in batch.items()}


def device_batches(
    loader: Loader, sharding: jax.sharding.Sharding, depth: int = 2
) -> DeviceBatches:
    """Batches of `loader` as arrays of the whole mesh, up to `depth` of them ahead.

    `sharding` splits the first axis so that each process holds its own rows. Texts stay numpy
    arrays of this process's rows.
    """
    return DeviceBatches(loader, sharding, depth)
