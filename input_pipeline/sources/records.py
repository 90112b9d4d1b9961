"""Examples in files of random access, decoded and of one size, as `input_pipeline.convert` writes.

    <path>/<split>/00000-of-00004.array_record ...    one msgpack map an example
    <path>/<split>/info.json                          what they hold, where it came from

Images are raw uint8 pixels, so that reading one is a copy. Arrays lie there as their bytes in C
order; type and shape, the same in all examples, are those of `fields` in info.json.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
from bisect import bisect_right
from collections.abc import Collection, Sequence
from pathlib import Path

import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from input_pipeline.sources.base import Source

INFO = "info.json"
FORMAT = "image records"
VERSION = 1
# Of each shard: reads of this many records and more go to array_record's threads, which pays for
# the 50 us that they cost.
_TOGETHER = 16
# Without read-ahead and with a small buffer: for random access to small records.
_BUFFER = 1 << 15
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
# Fields that are no arrays, by their Python type.
SCALARS = {"int": int, "float": float, "bool": bool, "str": str}


@dataclasses.dataclass(frozen=True)
class Field:
    """What one field of all examples is: an array of `shape`, or without one a scalar."""

    type: str
    shape: tuple[int, ...] | None = None

    @classmethod
    def of(cls, value: object) -> "Field":
        """The field that a value belongs to; numpy scalars are their Python counterparts."""
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            return cls(value.dtype.name, value.shape)
        if type(value) in SCALARS.values():
            return cls(type(value).__name__)
        raise ValueError(
            f"a {type(value).__name__} cannot be stored; fields are numbers, texts or arrays of "
            "numbers"
        )

    def pack(self, value: object) -> object:
        """The value as msgpack stores it; raises ValueError where it is of another field."""
        if Field.of(value) != self:
            raise ValueError(f"{Field.of(value)} where the first example has {self}")
        if self.shape is None:
            return value.item() if isinstance(value, np.generic) else value
        return value.astype(self._stored, copy=False).tobytes()

    def unpack(self, stored: object) -> object:
        """The value of what `pack` gave; arrays are read-only."""
        if self.shape is None:
            return stored
        return np.frombuffer(stored, self._stored).reshape(self.shape)

    @functools.cached_property
    def _stored(self) -> np.dtype:
        return np.dtype(self.type).newbyteorder("<")

    def __str__(self) -> str:
        return self.type if self.shape is None else f"{self.type}{list(self.shape)}"


class Records(Source):
    """One split of a directory of records; made by `records`."""

    def __init__(self, name: str, directory: Path, info: dict):
        self.name = name
        self.class_names = tuple(info["class_names"])
        self._directory = directory
        self._digest = info["sha256"]
        self._types = {
            field: Field(kind["type"], None if kind["shape"] is None else tuple(kind["shape"]))
            for field, kind in info["fields"].items()
        }
        self.fields = tuple(self._types)
        self._shards = [shard["file"] for shard in info["shards"]]
        self._ends = list(itertools.accumulate(shard["count"] for shard in info["shards"]))
        self._readers = {}
        self._check(info)

    def _check(self, info: dict) -> None:
        """Raises ValueError where a file is not what info.json says."""
        if self._ends[-1] != info["count"]:
            raise ValueError(
                f"{self.name}: {self._directory / INFO} tells of {info['count']} examples, and of "
                f"{self._ends[-1]} in its shards; convert again"
            )
        for number, shard in enumerate(info["shards"]):
            path = self._directory / shard["file"]
            if not path.exists():
                raise FileNotFoundError(f"{self.name}: {path} is missing; copy or convert again")
            size = path.stat().st_size
            if size != shard["bytes"]:
                raise ValueError(
                    f"{self.name}: {path} has {size} bytes and should have {shard['bytes']}; "
                    "copy or convert again"
                )
            count = self._reader(number).num_records()
            if count != shard["count"]:
                raise ValueError(
                    f"{self.name}: {path} has {count} examples and should have {shard['count']}; "
                    "copy or convert again"
                )

    def __getstate__(self) -> dict:
        return vars(self) | {"_readers": {}}

    def _reader(self, shard: int) -> ArrayRecordReader:
        # Threads may open one twice, the later one stays.
        reader = self._readers.get(shard)
        if reader is None:
            path = self._directory / self._shards[shard]
            reader = ArrayRecordReader(str(path), _OPTIONS, file_reader_buffer_size=_BUFFER)
            self._readers[shard] = reader
        return reader

    @functools.cached_property
    def fingerprint(self) -> str:
        """Number and digest of the examples, shard by shard."""
        return f"records-{len(self)}-{self._digest[:16]}"

    def __len__(self) -> int:
        return self._ends[-1]

    def example(self, index: int, fields: Collection[str]) -> dict:
        """The fields asked for; arrays are read-only."""
        return self.examples([index], fields)[0]

    def examples(self, indices: Sequence[int], fields: Collection[str]) -> list[dict]:
        """Many examples, those of a shard at once."""
        wanted = [(field, self._types[field].unpack) for field in fields]
        unpacked = map(msgpack.unpackb, self._read(indices))
        return [{field: unpack(values[field]) for field, unpack in wanted} for values in unpacked]

    def _read(self, indices: Sequence[int]) -> list[bytes]:
        rows, places = {}, {}
        for row, index in enumerate(indices):
            shard = bisect_right(self._ends, index)
            rows.setdefault(shard, []).append(row)
            places.setdefault(shard, []).append(index - (self._ends[shard - 1] if shard else 0))
        found = [b""] * len(indices)
        for shard, within in places.items():
            reader = self._reader(shard)
            try:
                if len(within) >= _TOGETHER:
                    records = reader.read(within)
                else:
                    records = [reader.read(place, place + 1)[0] for place in within]
            except (RuntimeError, IndexError) as error:
                path = self._directory / self._shards[shard]
                raise ValueError(
                    f"{self.name}: {path} is damaged ({error}); copy or convert again"
                ) from error
            for row, record in zip(rows[shard], records, strict=True):
                found[row] = record
        return found


def records(path: str, split: str = "train") -> Records:
    """Examples that `main.py --mode=convert` wrote: decoded, of one size, the fastest to read.

    Args:
        path: the directory that was converted to.
        split: the part of it.
    """
    name = f"records(path={path!r}, split={split!r})"
    directory = Path(path).expanduser() / split
    return Records(name, directory, read_info(name, directory))


def read_info(name: str, directory: Path) -> dict:
    """Contents of a split's info.json; raises what says how to put it right."""
    file = directory / INFO
    if not file.exists():
        if partial(directory).exists():
            raise FileNotFoundError(
                f"{name}: the conversion to {directory} was not finished; run it again, and it "
                "goes on"
            )
        splits = sorted(found.parent.name for found in directory.parent.glob(f"*/{INFO}"))
        has = f"; {directory.parent} has {', '.join(splits)}" if splits else ""
        raise FileNotFoundError(
            f"{name}: there is no {file}{has}; write it by main.py --mode=convert"
        )
    try:
        info = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}: {file} is not JSON ({error}); convert again") from error
    if info.get("format") != FORMAT or info.get("version") != VERSION:
        raise ValueError(
            f"{name}: {file} is of format {info.get('format')!r}, version {info.get('version')!r}; "
            f"this program reads {FORMAT!r}, version {VERSION}; convert again"
        )
    return info


def partial(directory: Path) -> Path:
    """Where a split lies as long as it is not complete."""
    return directory.with_name(f"{directory.name}.partial")


def digest(shards: Sequence[str]) -> str:
    """Digest of all examples from those of the shards' examples."""
    return hashlib.sha256("".join(shards).encode()).hexdigest()
