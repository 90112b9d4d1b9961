"""Batches of a source in a fixed order that can be continued at any batch.

Row i of global batch k is the example at position k * batch_size + i of an endless stream: one
permutation of the source after the other, without gaps between. Everything random about it
follows from (seed, position), so it does not matter which process or worker makes a batch, and
the place in the stream is the one number k.
"""

import dataclasses
import functools
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np
from absl import flags, logging

from input_pipeline.decoder import Decoder
from input_pipeline.processes import end_with_parent
from input_pipeline.sources.base import Source, check_name
from input_pipeline.tokenizer import Tokenizer

# Batches read ahead: by each thread of this process, or by each worker process.
_READ_AHEAD = 2
_THREADS = 2
_SKIPPED = "_skipped"


@dataclasses.dataclass(frozen=True)
class Stream:
    """Random access to one process's rows of every global batch; what workers are sent."""

    decoder: Decoder
    batch_size: int
    seed: int
    shuffle: bool
    augmentations: Sequence[Callable]
    epochs: int | None
    process_index: int
    process_count: int
    # What batches hold, in this order.
    fields: Sequence[str]
    # Makes the field `tokens` of the captions.
    tokenizer: Tokenizer | None = None

    @property
    def source(self) -> Source:
        """Where the examples come from."""
        return self.decoder.source

    @property
    def positions(self) -> int:
        """Examples in the stream."""
        # Without epochs: as good as endless, and the number of batches fits a C integer.
        return sys.maxsize if self.epochs is None else self.epochs * len(self.source)

    def __len__(self) -> int:
        return -(-self.positions // self.batch_size)

    def __getitem__(self, k: int) -> dict[str, np.ndarray]:
        rows = self.batch_size // self.process_count
        first = k * self.batch_size + self.process_index * rows
        positions = range(first, min(first + rows, self.positions))
        skipped = []
        # A process beyond the end of a partial last batch takes the form of its rows from row 0.
        batch = self._rows(positions or range(1), skipped)
        batch = {field: batch[field][: len(positions)] for field in self.fields}
        if self.decoder.on_bad_image == "skip":
            batch[_SKIPPED] = np.array(skipped, dtype=np.str_)
        return batch

    def _rows(self, positions: Sequence[int], skipped: list[str]) -> dict[str, np.ndarray]:
        indices = self.source.order(positions, self.seed, self.shuffle)
        fields, size = self.decoder.fields, self.decoder.image_size
        others = {field: [] for field in fields if field != "image"}
        batch = {}
        if "image" in fields:
            shape = len(indices), size, size, self.decoder.channels
            images = batch["image"] = np.empty(shape, np.uint8)
        generators = self._generators(positions)
        for row, example in enumerate(self.decoder(indices, skipped)):
            if "image" in fields:
                image = example["image"]
                if self.augmentations:
                    rng = next(generators)
                    for augment in self.augmentations:
                        image = augment(image, rng)
                images[row] = image
            for field, values in others.items():
                values.append(example[field])
        if self.tokenizer is not None:
            batch["tokens"] = self.tokenizer(others["caption"])
        for field, values in others.items():
            rows = np.asarray(values, np.int32 if field == "label" else None)
            batch[field] = rows.astype(np.float32) if rows.dtype.kind == "f" else rows
        return batch

    def _generators(self, positions: Sequence[int]) -> Iterator[np.random.Generator]:
        """For each position a generator of its own; valid until the next one is asked for."""
        bits = np.random.Philox(key=(self.seed, 0))
        generator, start = np.random.Generator(bits), bits.state
        for position in positions:
            # Like Philox(key=(seed, position)), in a fifth of the time.
            start["state"]["key"][1] = position
            bits.state = start
            yield generator


class Loader:
    """Iterator over this process's rows of the global batches; made by `make_loader`.

    Attributes:
        batch_size: rows of a global batch, over all processes.
        local_batch_size: rows of this process.
        skipped: bad images passed over so far by this process (on_bad_image='skip').
    """

    def __init__(self, stream: Stream, workers: int):
        self.batch_size = stream.batch_size
        self.local_batch_size = stream.batch_size // stream.process_count
        self.skipped = 0
        self._stream = stream
        self._workers = workers
        self._batches = 0
        self._warned = set()
        self._iterator = None

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            self._iterator = self._open(self._batches)
            # Grain's workers and memory are to be released before the interpreter is torn down.
            self._release = weakref.finalize(self, self._iterator.close)
        batch = next(self._iterator)
        if self._workers:
            # Out of the shared memory, which is scarce (64 MB in a container) and in use until
            # the batch is dropped.
            batch = {field: np.array(rows) for field, rows in batch.items()}
        self._batches += 1
        self._note_skipped(list(batch.pop(_SKIPPED, ())))
        return batch

    def state(self) -> dict:
        """The place after the batches that were returned, whatever was read ahead; JSON."""
        return {"batches": self._batches, **self._identity}

    def restore(self, state: dict) -> None:
        """Continues after the batches of `state`; nothing is read again.

        Raises ValueError where the state is that of another stream.
        """
        for field, value in self._identity.items():
            stored = state.get(field)
            if stored != value:
                raise ValueError(
                    f"the data position was stored with {field} = {stored!r} and is restored "
                    f"with {value!r}, where it means other examples; put {field} back, or start "
                    "in a new work directory"
                )
        self.close()
        self._batches = state["batches"]

    def close(self) -> None:
        """Ends threads and worker processes. The loader can be used on and opens them again."""
        if self._iterator is not None:
            self._release()
            self._iterator = None

    @functools.cached_property
    def _identity(self) -> dict:
        stream = self._stream
        identity = {
            "source": stream.source.fingerprint,
            "batch_size": stream.batch_size,
            "seed": stream.seed,
            "shuffle": stream.shuffle,
        }
        if stream.tokenizer is not None:
            identity["tokenizer"] = stream.tokenizer.fingerprint
        return identity

    def _open(self, start: int) -> grain.DatasetIterator:
        batches = grain.MapDataset.range(start, len(self._stream)).map(self._stream.__getitem__)
        threads = 1 if self._workers else _THREADS
        batches = batches.to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads * _READ_AHEAD)
        )
        if self._workers:
            if not flags.FLAGS.is_parsed():
                # Grain hands its flags to the workers; programs without absl have none to parse.
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(self._workers, _READ_AHEAD)
            batches = batches.mp_prefetch(options, worker_init_fn=_start_worker)
        return iter(batches)

    def _note_skipped(self, bad_images: list[str]) -> None:
        self.skipped += len(bad_images)
        for bad in bad_images:
            if bad not in self._warned:
                logging.warning("Skipped a bad image, %s", bad)
                self._warned.add(bad)


def make_loader(
    source: Source,
    *,
    image_size: int,
    channels: int,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    augmentations: Sequence[Callable] = (),
    fields: Sequence[str] | None = None,
    workers: int = 0,
    epochs: int | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
    on_bad_image: str = "raise",
    tokenizer: Tokenizer | None = None,
) -> Loader:
    """A loader of batches: dicts of arrays with this process's rows along the first axis.

    `image` is uint8 [rows, image_size, image_size, channels], `label` int32 [rows], texts are
    numpy strings. With P processes, process p has rows [p * batch_size / P, (p + 1) *
    batch_size / P) of each global batch.

    Args:
        source: made by one of `SOURCES`.
        image_size: side of the images in pixels.
        channels: 1 (grey) or 3 (RGB).
        batch_size: rows of a global batch, over all processes.
        seed: of the order and the augmentations.
        shuffle: a new permutation of the source each epoch; otherwise its own order.
        augmentations: made by some of `AUGMENTATIONS`; applied in order to each image.
        fields: what batches hold; by default the image, and the label where there are classes.
        workers: processes that read; 0: threads of this one.
        epochs: how often each example comes. By default without end. Otherwise the last batch
            has the rows that are left over, for some processes fewer or none, so that every
            process gets the same number of batches.
        process_index: of this process; by default JAX's.
        process_count: by default JAX's.
        on_bad_image: 'raise' an error with its name, or 'skip': take the next image of the source
            instead, count it in `Loader.skipped` and log a warning.
        tokenizer: with it the field `tokens` is int32 [rows, context], made of the captions.
    """
    if process_index is None or process_count is None:
        import jax  # here alone: asking for the processes starts the devices

        process_index, process_count = jax.process_index(), jax.process_count()
    if not len(source):
        raise ValueError(f"source: {source.name} is empty")
    check_name("channels", channels, (1, 3))
    check_name("on_bad_image", on_bad_image, ("raise", "skip"))
    if batch_size <= 0 or batch_size % process_count:
        raise ValueError(
            f"batch_size: {batch_size} examples cannot be split evenly over {process_count} "
            f"processes; make it a multiple of {process_count}"
        )
    if fields is None:
        fields = ("image", "label") if source.num_classes else ("image",)
    if "tokens" not in fields:
        tokenizer = None
    read = [field for field in fields if field != "tokens" or tokenizer is None]
    if tokenizer is not None and "caption" not in read:
        read.append("caption")
    source.require(read)
    decoder = Decoder(source, image_size, channels, tuple(read), on_bad_image)
    stream = Stream(
        decoder,
        batch_size,
        seed,
        shuffle,
        tuple(augmentations),
        epochs,
        process_index,
        process_count,
        tuple(fields),
        tokenizer,
    )
    return Loader(stream, workers)


def _start_worker(worker_index: int, worker_count: int) -> None:
    end_with_parent()
