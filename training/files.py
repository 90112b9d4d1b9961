"""Files that are there whole or not at all."""

import contextlib
import errno
import io
import logging
import os
import time
from collections.abc import Callable

import numpy as np
from etils import epath

from training.exit_codes import TryAgain

log = logging.getLogger(__name__)

# Storage that is full, read-only, or gone for a while.
PASSING = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOENT)
)
_FULL = (errno.ENOSPC, errno.EDQUOT)


def persist(write: Callable[[], None], what: str, pause: float = 1.0, patience: float = 600.0):
    """Calls `write`, again and again where the storage does not take it; each try is told of.

    Args:
        write: may be called any number of times.
        what: that is written, for the message.
        pause: seconds before the first new try; each further one waits twice as long.
        patience: seconds after which it gives up.

    Raises:
        TryAgain: no try succeeded.
    """
    end = time.monotonic() + patience
    while True:
        try:
            return write()
        except OSError as error:
            if error.errno not in PASSING:
                raise
            if time.monotonic() + pause > end:
                raise TryAgain(
                    f"{what} could not be written for {patience:.0f} s ({error.strerror})"
                ) from error
            log.warning("%s: %s; trying again in %.0f s", what, error.strerror, pause)
            time.sleep(pause)
            pause *= 2


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
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        # Half a file would keep a full disk full.
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


def npz(**arrays: np.ndarray | float) -> bytes:
    """The bytes of an .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def full(error: BaseException) -> bool:
    """Whether an error says that the storage is full; libraries in C++ raise their own types."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return any(os.strerror(number) in str(error) for number in _FULL)


def is_bucket(path: str | os.PathLike[str]) -> bool:
    """Whether the path is a URL: its objects are written whole, never appended to or renamed."""
    return "://" in os.fspath(path)
