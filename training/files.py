"""Files that are there whole or not at all."""

import os

from etils import epath


def atomic_write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that a reader, or a kill at any moment, finds the old one or the new one.

    Local files are written beside the target, flushed to the disk and renamed over it; the parent
    directory is made where it is missing. An object of a bucket appears only when it is complete.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_bucket(path):
        path.write_bytes(data)
        return
    temporary = f"{os.fspath(path)}.tmp-{os.getpid()}"
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def is_bucket(path: epath.Path) -> bool:
    """Whether the path is a URL: its objects are written whole, never appended to or renamed."""
    return "://" in os.fspath(path)
