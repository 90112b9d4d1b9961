"""Published weights without the library that wrote them, and without running what is inside.

A .pth file is a pickle, which is a program. It may name the few things a state dict is made of; a
file that names anything else is refused before that is even imported.
"""

import collections
import io
import math
import os
import pickle
import zipfile
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

_STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# First pickle of a file of the old format, and the version after it.
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001


class _Kind(NamedTuple):
    """What stands for a class of storages; it cannot be called."""

    dtype: np.dtype


class _Storage:
    """A row of numbers; `data` comes after the pickle."""

    def __init__(self, dtype: np.dtype, key: str, count: int):
        self.dtype, self.key, self.count = dtype, key, count
        self.data: np.ndarray | None = None


class _View(NamedTuple):
    """A tensor: a part of a storage, strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        sizes = (self.offset, *self.shape, *self.strides)
        if len(self.shape) != len(self.strides) or any(n < 0 for n in sizes):
            raise ValueError(f"shape {self.shape} with strides {self.strides} is no tensor")
        if 0 in self.shape:
            return np.zeros(self.shape, self.storage.dtype)
        last = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        data = self.storage.data
        # Not more numbers than there are: a few bytes could ask for all memory by strides of zero.
        if self.offset + last >= len(data) or math.prod(self.shape) > len(data):
            raise ValueError(f"a tensor of {self.shape} lies beyond the {len(data)} numbers there")
        steps = [step * data.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(data[self.offset :], self.shape, steps).copy()


class _Unpickler(pickle.Unpickler):
    """Of a state dict only."""

    def __init__(self, file: io.BufferedIOBase):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in _STORAGES:
            return _Kind(np.dtype(_STORAGES[name]))
        raise ValueError(f"names {module}.{name}, which no state dict needs; nothing of it was run")

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", _Kind(dtype), str(key), str(), int(count), *rest) if count >= 0:
                if rest not in ([], [None]):
                    raise ValueError(f"storage {key} is a view of another one; cannot read that")
                return self.storages.setdefault(key, _Storage(dtype, key, count))
        raise ValueError(f"{pid!r} is no storage")


def _rebuild(storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None):
    """What torch._utils._rebuild_tensor_v2 is asked for, before the numbers are there."""
    if not isinstance(storage, _Storage):
        raise ValueError(f"a tensor of {type(storage).__name__} instead of a storage")
    return _View(storage, offset, tuple(shape), tuple(strides))


def read_weights(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Tensors of a state dict by name, floats as float32: safetensors, or either format of .pth.

    Raises:
        ValueError: the file is neither, or holds, or asks for, anything but tensors by name.
    """
    path = os.fspath(path)
    try:
        if path.endswith(".safetensors"):
            tensors = load_file(path)
        else:
            tensors = _read_zip(path) if zipfile.is_zipfile(path) else _read_old(path)
    except OSError:
        raise
    except Exception as error:  # there is no end to the ways in which a file can be broken
        raise ValueError(f"{path}: {error}") from error
    floats = {name for name, x in tensors.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    return {name: x.astype(np.float32) if name in floats else x for name, x in tensors.items()}


def _read_zip(path: str) -> dict[str, np.ndarray]:
    """Since PyTorch 1.6: <any>/data.pkl, and the storages as files beside it."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        found = sorted(name for name in names if name.split("/")[1:] == ["data.pkl"])
        if len(found) != 1:
            raise ValueError(f"a zip file with {len(found)} */data.pkl; that is no state dict")
        root = found[0].removesuffix("data.pkl")
        if f"{root}constants.pkl" in names:
            raise ValueError("a TorchScript program; take the file with its state dict")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("its numbers are not little-endian")
        unpickler = _Unpickler(io.BytesIO(archive.read(found[0])))
        state = unpickler.load()
        for storage in unpickler.storages.values():
            _fill(storage, archive.read(f"{root}data/{storage.key}"))
    return _arrays(state)


def _read_old(path: str) -> dict[str, np.ndarray]:
    """Before: pickles of magic number, version, machine, state dict, and names of storages."""
    with open(path, "rb") as file:
        if file.read(1) != b"\x80":
            raise ValueError("is neither .safetensors nor a .pth of PyTorch")
        file.seek(0)
        if _Unpickler(file).load() != _MAGIC or _Unpickler(file).load() != _VERSION:
            raise ValueError("a pickle, but no state dict of PyTorch")
        machine, unpickler = _Unpickler(file).load(), _Unpickler(file)
        if not machine.get("little_endian", True):
            raise ValueError("its numbers are not little-endian")
        state = unpickler.load()
        for key in _Unpickler(file).load():
            storage = unpickler.storages[key]
            if int.from_bytes(file.read(8), "little") != storage.count:
                raise ValueError(f"storage {key} has not {storage.count} numbers as it should")
            _fill(storage, file.read(storage.count * storage.dtype.itemsize))
    return _arrays(state)


def _fill(storage: _Storage, data: bytes) -> None:
    if len(data) < storage.count * storage.dtype.itemsize:
        raise ValueError(f"storage {storage.key} is cut off; copy the file once more")
    storage.data = np.frombuffer(data, storage.dtype, storage.count)


def _arrays(state: Any) -> dict[str, np.ndarray]:
    if not isinstance(state, dict):
        raise ValueError(f"holds a {type(state).__name__}, no state dict")
    for name, value in state.items():
        if not isinstance(value, _View):
            raise ValueError(f"{name!r} is a {type(value).__name__}, no tensor")
    return {str(name): view.array() for name, view in state.items()}
