"""Files by name in a directory, tars or zips: one interface, random access, any thread.

What is open is opened in the process that reads and is not sent to others.
"""

import abc
import glob
import io
import os
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

_COMPRESSED = (".tgz", ".tbz", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".zst")


class Archive(abc.ABC):
    """Names and sizes of all visible files, and their contents."""

    def __init__(self, path: Path):
        self.path = path
        self._file = self._open()
        # Files that begin with a dot, or lie in such a folder, belong to the system (.DS_Store).
        self.sizes = {
            name: size
            for name, size in self._entries()
            if not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
        }

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "_file"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._file = self._open()

    @abc.abstractmethod
    def _open(self) -> object:
        """What all names are read from; opened in each process."""

    @abc.abstractmethod
    def _entries(self) -> Iterator[tuple[str, int]]: ...

    @abc.abstractmethod
    def read(self, name: str) -> bytes:
        """Contents of one file."""


class Directory(Archive):
    """All files below a directory."""

    def _open(self) -> None:
        return None

    def _entries(self) -> Iterator[tuple[str, int]]:
        root = os.fspath(self.path)
        for folder, _, files in os.walk(root, followlinks=True):
            for file in files:
                path = os.path.join(folder, file)
                yield os.path.relpath(path, root).replace(os.sep, "/"), os.stat(path).st_size

    def read(self, name: str) -> bytes:
        """Contents of one file."""
        return (self.path / name).read_bytes()


class Tar(Archive):
    """An uncompressed tar, read by the offsets of its members."""

    def _open(self) -> io.FileIO:
        return open(self.path, "rb", buffering=0)

    def _entries(self) -> Iterator[tuple[str, int]]:
        self._offsets = {}
        with tarfile.open(self.path, "r:") as tar:
            for member in tar:
                if member.isfile():
                    name = member.name.removeprefix("./")
                    self._offsets[name] = member.offset_data
                    yield name, member.size

    def read(self, name: str) -> bytes:
        """Contents of one file."""
        # pread keeps no position, so threads do not disturb each other.
        return os.pread(self._file.fileno(), self.sizes[name], self._offsets[name])


class Zip(Archive):
    """A zip file."""

    def _open(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.path)

    def _entries(self) -> Iterator[tuple[str, int]]:
        for member in self._file.infolist():
            if not member.is_dir():
                yield member.filename, member.file_size

    def read(self, name: str) -> bytes:
        """Contents of one file."""
        return self._file.read(name)


class Shards(Archive):
    """The files of several archives together."""

    def __init__(self, path: Path, parts: Sequence[Archive]):
        self._parts = parts
        super().__init__(path)

    def _open(self) -> None:
        return None

    def _entries(self) -> Iterator[tuple[str, int]]:
        self._holders = {}
        for part in self._parts:
            for name, size in part.sizes.items():
                if name in self._holders:
                    raise ValueError(
                        f"folder(path=...): {name} is in {self._holders[name].path} and in "
                        f"{part.path}; files need names of their own over all shards"
                    )
                self._holders[name] = part
                yield name, size

    def read(self, name: str) -> bytes:
        """Contents of one file."""
        return self._holders[name].read(name)


def open_archive(path: str) -> Archive:
    """What is at `path`, or the shards that it matches; raises what says how to put it right."""
    found = Path(path).expanduser()
    if "*" in path and not found.exists():
        shards = sorted(glob.glob(str(found)))
        if not shards:
            raise FileNotFoundError(f"folder(path=...): no file matches {path!r}")
        return Shards(found, [open_archive(shard) for shard in shards])
    if not found.exists():
        raise FileNotFoundError(f"folder(path=...): there is nothing at {path!r}")
    if found.is_dir():
        return Directory(found)
    if found.suffix in _COMPRESSED:
        raise ValueError(
            f"folder(path=...): {path!r} is compressed, so its images cannot be read in random "
            "order; unpack it (tar -xf) and give the directory, or pack it as a plain .tar"
        )
    kinds = {".tar": Tar, ".zip": Zip}
    if found.suffix not in kinds:
        raise ValueError(f"folder(path=...): {path!r} is neither a directory nor a .tar or .zip")
    return kinds[found.suffix](found)
