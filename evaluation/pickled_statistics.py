"""Reads a pickle of dicts, strings, numbers and arrays of numbers, and nothing else.

A pickle is a program. Here none of the functions that it names is called: each of numpy's that
arrays are made by has a stand-in, and any other one ends the reading.
"""

import io
import math
import pickle
import re
from typing import Any

import numpy as np

_PLAIN = (str, bool, int, float, type(None))
# What numpy 1 and 2 write arrays with.
_MADE_BY = {
    f"{package}.{name}": kind
    for package in ("numpy.core", "numpy._core")
    for name, kind in (
        ("multiarray._reconstruct", "array"),
        ("multiarray.scalar", "scalar"),
        ("numeric._frombuffer", "buffer"),
    )
} | {
    "numpy.ndarray": "type",
    "numpy.dtype": "dtype",
    # Bytes in the protocols of Python 2, and those of nothing.
    "_codecs.encode": "bytes",
    "__builtin__.bytes": "no bytes",
}


def loads(data: bytes) -> Any:
    """The value of a pickle: dicts with string keys, strings, numbers, arrays of numbers.

    Raises:
        pickle.UnpicklingError: it holds anything else, which the message names, or is damaged.
    """
    try:
        return _value(_Reader(io.BytesIO(data)).load(), "the file")
    except pickle.UnpicklingError:
        raise
    # What a pickle that is cut off or made by hand can raise is not limited.
    except Exception as error:
        raise pickle.UnpicklingError(str(error) or type(error).__name__) from error


# Not the one in C, which takes as much memory as a number in the file says.
class _Reader(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        kind = _MADE_BY.get(f"{module}.{name}")
        if kind is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is code")
        return _StandIn(kind)


class _StandIn:
    """In place of one of numpy's functions."""

    # Without a dict, so that a pickle cannot set attributes of it.
    __slots__ = ("_kind",)

    def __init__(self, kind: str):
        self._kind = kind

    def __call__(self, *args: Any) -> Any:
        if self._kind == "array":
            return _Array()
        if self._kind == "dtype":
            return _Type(args[0])
        if self._kind == "scalar":
            return _Array((1, (), args[0], False, args[1]), number=True)
        if self._kind == "buffer":
            data, dtype, shape, order = args
            return _Array((1, shape, dtype, order == "F", data))
        if self._kind == "bytes" and args[1:] == ("latin1",):
            return args[0].encode("latin1")
        if self._kind == "no bytes" and not args:
            return b""
        raise pickle.UnpicklingError(f"it makes a {self._kind} of {args!r:.60}")


class _Type:
    """A dtype before its byte order is told."""

    def __init__(self, code: Any):
        # Old files have the byte order in the code.
        if not re.fullmatch(r"[<>|=]?[fiu][1248]", str(code)):
            raise pickle.UnpicklingError(f"it has an array of type {code!r:.60}, not of numbers")
        self.dtype = np.dtype(str(code))

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array or number, before or after its state is told; numpy would take any state."""

    def __init__(self, state: tuple | None = None, number: bool = False):
        self.value: np.ndarray | None = None
        self.number = number
        if state is not None:
            self.__setstate__(state)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _array(dtype, shape, data, fortran)


def _array(dtype: Any, shape: Any, data: Any, fortran: bool) -> np.ndarray:
    if not isinstance(dtype, _Type) or not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("it has an array that is not of numbers")
    shape = tuple(map(int, shape))
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise pickle.UnpicklingError(f"it has {len(data)} bytes for an array {list(shape)}")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if fortran else "C")


def _value(found: Any, where: str) -> Any:
    if isinstance(found, _Array) and found.value is not None:
        return found.value[()] if found.number else found.value
    if type(found) is dict:
        for key in found:
            if type(key) is not str:
                raise pickle.UnpicklingError(f"{where} has a key that is a {type(key).__name__}")
        return {key: _value(value, key) for key, value in found.items()}
    if type(found) in _PLAIN:
        return found
    raise pickle.UnpicklingError(f"{where} is a {type(found).__name__}")
