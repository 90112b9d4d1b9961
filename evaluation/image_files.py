"""Images that any program made, read in chunks: a folder, a tar or zip of it, or an .npz."""

import abc
import contextlib
import functools
import hashlib
import math
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int, Shaped, UInt8

from input_pipeline.images import BadImageError, header, to_array
from input_pipeline.sources.archive import open_archive
from input_pipeline.sources.folder import IMAGES

# Modes of Pillow that have 8 bits a channel and no transparency.
_CHANNELS = {"L": 1, "RGB": 3}
# Bytes of an .npz that are held at a time where all of it is gone through.
_READ_AHEAD = 1 << 22
# What readers of zip and npy raise on a file that is damaged.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError)


class FileError(ValueError):
    """A file that does not do; one line with its path, what it holds, what to do."""


class Images(abc.ABC):
    """Square uint8 images in a fixed order.

    Attributes:
        name: what they are, for messages.
        count: how many.
        side: of an image in pixels.
        channels: 1 (grey) or 3 (RGB).
    """

    name: str
    count: int
    side: int
    channels: int

    @property
    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """JSON values that change when an image or the order does."""

    @abc.abstractmethod
    def rows(self, first: int, last: int) -> UInt8[np.ndarray, "rows side side channels"]:
        """Images `first` to `last` - 1; ascending calls are the fast ones."""

    def chunks(self, size: int) -> Iterator[UInt8[np.ndarray, "rows side side channels"]]:
        """All images, `size` at a time; the last time those that are left over."""
        for first in range(0, self.count, size):
            yield self.rows(first, min(first + size, self.count))

    @property
    def labels(self) -> Int[np.ndarray, " count"] | None:
        """Of each image; None where there are none."""
        return None


def read(path: str | os.PathLike[str]) -> Images:
    """The images at a path: a directory, a .tar or .zip, shards of these by '*', or an .npz.

    Raises:
        FileError: nothing is there, it is damaged, or not all images are uint8, square, of one size
            and one number of channels; the first one that is otherwise is named.
    """
    text = os.path.expanduser(os.fspath(path))
    if "*" not in text and not os.path.exists(text):
        raise FileError(f"{text}: there is nothing; give a directory, .tar, .zip or .npz of images")
    return ArrayImages(text) if text.endswith(".npz") else FolderImages(text)


class FolderImages(Images):
    """Image files below a directory or in tars and zips, by the order of their names."""

    def __init__(self, path: str):
        self.name = path
        with refused_if_damaged(path):
            try:
                self._archive = open_archive(path)
            except (FileNotFoundError, ValueError) as error:  # whose messages are complete
                raise FileError(str(error)) from error
        self._names = sorted(n for n in self._archive.sizes if n.lower().endswith(IMAGES))
        if not self._names:
            raise FileError(
                f"{path}: no image among {len(self._archive.sizes)} files; it needs some of "
                f"{' '.join(IMAGES)}"
            )
        self.count = len(self._names)
        self._look()

    def _look(self) -> None:
        """Form and digest of all files, which are read once."""
        digest, first, jpegs = hashlib.sha256(), None, 0
        for name in self._names:
            with refused_if_damaged(self._where(name)):
                data = self._archive.read(name)
                kind, mode, *size = header(data)
            if mode not in _CHANNELS:
                raise FileError(
                    f"{self._where(name)}: pixels of mode {mode}; allowed are L (8-bit grey) and "
                    "RGB, without transparency; convert it, so that all programs see the same"
                )
            form = (*size, _CHANNELS[mode])
            first = first or form
            if form != first:
                raise FileError(
                    f"{self._where(name)}: {_form(form)}, and {self._names[0]} is {_form(first)}; "
                    "all have to be of one size and number of channels; move what is no sample"
                )
            jpegs += kind == "JPEG"
            digest.update(f"{name}\0{len(data)}\0".encode())
            digest.update(data)
        width, height, self.channels = first
        if width != height:
            raise FileError(f"{self._where(self._names[0])}: {_form(first)}; give square images")
        self.side, self._digest = width, digest.hexdigest()
        if jpegs:
            logging.warning(
                "%s: %d of %d images are JPEG, whose losses change the scores; take PNG where the "
                "images can be made again",
                *(self.name, jpegs, self.count),
            )

    def _where(self, name: str) -> str:
        return f"{self.name}/{name}"

    @property
    def identity(self) -> dict[str, Any]:
        """Digest of sorted names and bytes; the same for a directory and for a tar or zip of it."""
        return {"images": self._digest, "count": self.count}

    def rows(self, first: int, last: int) -> UInt8[np.ndarray, "rows side side channels"]:
        """Images `first` to `last` - 1."""
        with ThreadPoolExecutor() as pool:
            return np.stack(list(pool.map(self._image, self._names[first:last])))

    def _image(self, name: str) -> UInt8[np.ndarray, "side side channels"]:
        with refused_if_damaged(self._where(name)):
            return to_array(self._archive.read(name), self.side, self.channels)


class ArrayImages(Images):
    """`arr_0` of an .npz, as ADM's evaluation has it: uint8 NHWC; read from the zip as needed."""

    def __init__(self, path: str):
        self.name = path
        self._array = ArrayMember(path, "arr_0")
        shape, dtype = self._array.shape, self._array.dtype
        found = f"{path}: arr_0 is {dtype} {list(shape)}"
        if dtype != np.uint8:
            raise FileError(
                f"{found}; images are uint8 from 0 to 255; scale, round and convert them"
            )
        if len(shape) != 4 or shape[3] not in (1, 3):
            swapped = len(shape) == 4 and shape[1] in (1, 3)
            hint = "transpose it (0, 2, 3, 1)" if swapped else "it needs four axes, the last 1 or 3"
            raise FileError(f"{found}; images are [count, height, width, channels]; {hint}")
        self.count, height, self.side, self.channels = shape
        if not self.count:
            raise FileError(f"{found}: no image; a file of at least one is needed")
        if height != self.side:
            raise FileError(f"{found}; give square images")
        self._label_type = self._check_labels()

    def _check_labels(self) -> np.dtype | None:
        if "arr_1" not in self._array.names:
            return None
        labels = ArrayMember(self.name, "arr_1")
        if labels.dtype.kind not in "iu" or labels.shape != (self.count,):
            raise FileError(
                f"{self.name}: arr_1 is {labels.dtype} {list(labels.shape)}; labels are "
                f"whole numbers [{self.count}], one an image; correct or leave out arr_1"
            )
        return labels.dtype

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """Digest of shape and pixels, whatever else the file holds or how it is compressed."""
        digest = hashlib.sha256(f"arr_0 {list(self._array.shape)}".encode())
        for chunk in self.chunks(max(1, _READ_AHEAD // (self.side**2 * self.channels))):
            digest.update(chunk)
        return {"images": digest.hexdigest(), "count": self.count}

    def rows(self, first: int, last: int) -> UInt8[np.ndarray, "rows side side channels"]:
        """Images `first` to `last` - 1."""
        return self._array.rows(first, last)

    @property
    def labels(self) -> Int[np.ndarray, " count"] | None:
        """`arr_1`, where the file has it."""
        return None if self._label_type is None else ArrayMember(self.name, "arr_1").all()


class ArrayMember:
    """One array of an .npz, read by rows without loading the rest.

    A compressed array has to be unpacked from its start, so a row before the last one read is slow.
    """

    def __init__(self, path: str, name: str):
        self._where = f"{path}: {name}"
        with refused_if_damaged(path):
            archive = zipfile.ZipFile(path)
        self.names = sorted(entry.removesuffix(".npy") for entry in archive.namelist())
        if name not in self.names:
            raise FileError(
                f"{path}: no {name}; it has {', '.join(self.names) or 'nothing'}; images are "
                "expected under arr_0 (numpy.savez(path, images))"
            )
        member = f"{name}.npy"
        with refused_if_damaged(self._where):
            self._file = archive.open(member)
            version = np.lib.format.read_magic(self._file)
            readers = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }
            if version not in readers:
                raise ValueError(f"npy format {version}")
            self.shape, fortran, self.dtype = readers[version](self._file)
        if (fortran and len(self.shape) > 1) or self.dtype.hasobject:
            kind = "objects" if self.dtype.hasobject else "an array in Fortran's order"
            raise FileError(f"{self._where}: {kind}; save numbers in C order")
        self._start = self._file.tell()
        size = self._start + math.prod(self.shape) * self.dtype.itemsize
        if archive.getinfo(member).file_size != size:
            raise FileError(
                f"{self._where}: {archive.getinfo(member).file_size} bytes where {self.dtype} "
                f"{list(self.shape)} takes {size}; {_ANEW}"
            )

    def rows(self, first: int, last: int) -> Shaped[np.ndarray, "rows *rest"]:
        """Rows `first` to `last` - 1 along the first axis."""
        shape = last - first, *self.shape[1:]
        array = np.empty(shape, self.dtype)
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        with refused_if_damaged(self._where):
            self._file.seek(self._start + first * row)
            into = memoryview(array.reshape(-1).view(np.uint8))
            while into:
                read = self._file.readinto(into)
                if not read:
                    raise EOFError("it ends early")
                into = into[read:]
        return array

    def all(self) -> Shaped[np.ndarray, "rows *rest"]:
        """The whole array."""
        return self.rows(0, self.shape[0])


_ANEW = "the file is damaged or was not written to its end; make or fetch it anew"


@contextlib.contextmanager
def refused_if_damaged(where: str | os.PathLike[str]) -> Iterator[None]:
    """Gives the errors of those who read a damaged file as a FileError that names it."""
    try:
        yield
    except FileError:
        raise
    except BadImageError as error:
        raise FileError(f"{where}: cannot be decoded ({error}); mend or remove it") from error
    except (*_DAMAGED, tarfile.TarError) as error:
        if getattr(error, "errno", None):  # of the file system; the bytes may be as they should
            raise FileError(f"{where}: cannot be read: {error}") from error
        raise FileError(f"{where}: {str(error) or type(error).__name__}; {_ANEW}") from error


def _form(form: tuple[int, int, int]) -> str:
    width, height, channels = form
    return f"{width} x {height} pixels, {'grey' if channels == 1 else 'RGB'}"
