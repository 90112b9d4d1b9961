"""Any source to files of random access, decoded once and for all: what `records` reads.

A split is written beside its final place, shard by shard, and renamed when it is whole. A
conversion that was killed keeps its finished shards when it is run again with the same settings;
with others it starts anew.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
from array_record.python.array_record_module import ArrayRecordWriter

from input_pipeline.decoder import Decoder
from input_pipeline.processes import end_with_parent
from input_pipeline.sources import records
from input_pipeline.sources.base import Source, check_name
from input_pipeline.sources.mixture import Mixture
from input_pipeline.sources.records import Field

_SHARD_BYTES = 1 << 30
# Of an unfinished split.
_PLAN, _LOCK = "plan.json", "lock"
# Records, and what was wrong with the images that others replace.
Encoded = tuple[list[bytes], list[str]]
# What is handed from a worker to the writer at a time.
_CHUNK, _CHUNK_BYTES = 256, 1 << 22


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Examples of a source as records; what workers are sent."""

    decoder: Decoder
    types: Mapping[str, Field]

    def __call__(self, indices: Sequence[int]) -> Encoded:
        """The records of these indices."""
        skipped, encoded = [], []
        for index, example in zip(indices, self.decoder(indices, skipped), strict=True):
            encoded.append(self._pack(index, example))
        return encoded, skipped

    def _pack(self, index: int, example: dict) -> bytes:
        packed = {}
        for field, kind in self.types.items():
            try:
                packed[field] = kind.pack(example[field])
            except ValueError as error:
                where = self.decoder.source.describe(index)
                raise ValueError(f"{where}: field {field!r} is {error}") from error
        return msgpack.packb(packed)


def convert(
    source: Source,
    path: str | os.PathLike[str],
    split: str = "train",
    *,
    image_size: int,
    channels: int,
    fields: Sequence[str] = (),
    shards: int = 0,
    group_size: int = 1,
    workers: int = 0,
    on_bad_image: str = "raise",
    made: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Path:
    """Writes the examples of a source, in its order, to `<path>/<split>`; returns that directory.

    What is there already, of the same source and settings, stays as it is.

    Args:
        source: not a mixture; its parts are converted, and the records mixed.
        path: holds all splits.
        split: what these examples are called.
        image_size: side of the images in pixels.
        channels: 1 (grey) or 3 (RGB).
        fields: what is kept; by default all that the source has.
        shards: number of files; 0: one for each GiB of pixels.
        group_size: records that are compressed, and so read, together; more than 1 makes random
            access slower.
        workers: processes that read and decode; 0: this one.
        on_bad_image: 'raise' an error with its name, or 'skip': take the next image of the source
            instead, and name it in info.json.
        made: JSON values for info.json that tell how, when and by what this was made.
        progress: called with the number of examples that are done.

    Raises:
        ValueError: settings that do not fit, or (BadImageError) an image that cannot be decoded.
        FileExistsError: something else is there.
    """
    check_name("channels", channels, (1, 3))
    check_name("on_bad_image", on_bad_image, ("raise", "skip"))
    if isinstance(source, Mixture):
        raise ValueError(
            f"{source.name} would lose its weights; convert each part, and mix the records: "
            "mixture(sources=(records(...), ...), weights=...)"
        )
    if not len(source):
        raise ValueError(f"{source.name} is empty")
    fields = tuple(fields) or tuple(source.fields)
    source.require(fields)
    pixels = image_size**2 * channels
    shards = shards or -(-len(source) * pixels // _SHARD_BYTES)
    if not 1 <= shards <= len(source):
        raise ValueError(f"shards: must be from 1 to {len(source)}, the examples, not {shards}")
    plan = {
        "format": records.FORMAT,
        "version": records.VERSION,
        "fingerprint": source.fingerprint,
        "image_size": image_size,
        "channels": channels,
        "fields": list(fields),
        "shards": shards,
        "group_size": group_size,
        "on_bad_image": on_bad_image,
    }
    directory = Path(path).expanduser() / split
    if directory.exists():
        _check_same(directory, plan)
        progress(len(source))
        return directory

    with _claimed(records.partial(directory), plan) as partial:
        decoder = Decoder(source, image_size, channels, fields, on_bad_image)
        (first,) = decoder([0], [])
        types = {field: Field.of(first[field]) for field in fields}
        encoder = Encoder(decoder, types)
        parts = [
            _Shard(partial / f"{k:05}-of-{shards:05}.array_record", rows)
            for k, rows in enumerate(_cut(range(len(source)), shards))
        ]
        chunk = max(1, min(_CHUNK, _CHUNK_BYTES // pixels))
        _write_missing(parts, encoder, chunk, workers, f"group_size:{group_size},zstd:1", progress)
        finished = [part.read() for part in parts]
        info = {
            "format": records.FORMAT,
            "version": records.VERSION,
            "split": split,
            "count": len(source),
            "class_names": list(source.class_names) if "label" in fields else [],
            "fields": {field: dataclasses.asdict(kind) for field, kind in types.items()},
            "sha256": records.digest([shard["sha256"] for shard in finished]),
            "replaced": [text for shard in finished for text in shard.pop("replaced")],
            "shards": finished,
            "source": source.name,
            "plan": plan,
            "made": dict(made or {}),
        }
        records.Records(f"the conversion to {partial}", partial, info)  # checks its files
        _write_json(partial / records.INFO, info)
        os.rename(partial, directory)
    for name in (_PLAN, _LOCK, *(part.note.name for part in parts)):
        (directory / name).unlink()
    return directory


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A file of records and, once it is complete, a note of what is in it."""

    path: Path
    rows: range

    @property
    def note(self) -> Path:
        return self.path.with_suffix(".json")

    def read(self) -> dict[str, Any]:
        return json.loads(self.note.read_text())

    def write(self, chunks: Iterable[Encoded], options: str) -> None:
        writer = ArrayRecordWriter(str(self.path), options)
        content, replaced = hashlib.sha256(), []
        for encoded, skipped in chunks:
            for record in encoded:
                content.update(record)
                writer.write(record)
            replaced += skipped
        writer.close()
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())
        note = {
            "file": self.path.name,
            "count": len(self.rows),
            "bytes": self.path.stat().st_size,
            "sha256": content.hexdigest(),
            "replaced": replaced,
        }
        _write_json(self.note, note)


def _write_missing(
    shards: Sequence[_Shard],
    encoder: Encoder,
    chunk: int,
    workers: int,
    options: str,
    progress: Callable[[int], None],
) -> None:
    missing = [shard for shard in shards if not shard.note.exists()]
    tasks = {shard: _cut(shard.rows, -(-len(shard.rows) // chunk)) for shard in missing}
    done = sum(len(shard.rows) for shard in shards) - sum(len(shard.rows) for shard in missing)
    # One line of work through all shards, so that workers do not wait at the end of each.
    results = _encode(encoder, [task for shard in missing for task in tasks[shard]], workers)

    def counted() -> Iterator[Encoded]:
        nonlocal done
        progress(done)
        for encoded in results:
            done += len(encoded[0])
            progress(done)
            yield encoded

    with contextlib.closing(results), contextlib.closing(counted()) as chunks:
        for shard in missing:
            shard.write(itertools.islice(chunks, len(tasks[shard])), options)


def _encode(encoder: Encoder, tasks: Sequence[range], workers: int) -> Iterator[Encoded]:
    """Results of the encoder, in order; with workers, some are made ahead."""
    if not workers:
        yield from map(encoder, tasks)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(encoder,))
    try:
        ahead = deque()
        for task in tasks:
            ahead.append(pool.submit(_encode_here, task))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


_encoder: Encoder | None = None  # of a worker process


def _start_worker(encoder: Encoder) -> None:
    global _encoder
    end_with_parent()
    _encoder = encoder


def _encode_here(indices: range) -> Encoded:
    return _encoder(indices)


def _cut(rows: range, parts: int) -> list[range]:
    """The range as that many ranges whose lengths differ by 1 at most."""
    ends = [len(rows) * part // parts for part in range(parts + 1)]
    return [rows[start:end] for start, end in itertools.pairwise(ends)]


@contextlib.contextmanager
def _claimed(partial: Path, plan: Mapping[str, Any]) -> Iterator[Path]:
    """The directory of an unfinished split for this process alone, empty or of the same plan."""
    partial.mkdir(parents=True, exist_ok=True)
    lock = partial / _LOCK
    with open(lock, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(f"another process is converting to {partial}") from None
        path = partial / _PLAN
        if not path.exists() or json.loads(path.read_text()) != plan:
            for old in partial.iterdir():
                if old != lock:
                    old.unlink()
            _write_json(path, plan)
        yield partial


def _check_same(directory: Path, plan: Mapping[str, Any]) -> None:
    """Raises FileExistsError where a directory is not the result of a plan."""
    if not (directory / records.INFO).exists():
        raise FileExistsError(f"{directory} is there and holds no records; give another one")
    old = records.read_info(f"convert to {directory}", directory)["plan"]
    changes = [
        f"{field} {old.get(field)!r}, not {value!r}"
        for field, value in plan.items()
        if old.get(field) != value
    ]
    if changes:
        raise FileExistsError(
            f"{directory} holds other records ({'; '.join(changes)}); remove it or give another "
            "directory"
        )


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a file that is there whole or not at all."""
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
