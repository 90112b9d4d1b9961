"""Checkpoints that cannot be read or written: what is damage, and what passes."""

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from training.components import ConfigError
from training.exit_codes import TryAgain

log = logging.getLogger(__name__)

# Of tensorstore's messages: the storage, or the machine, and not what is stored.
_PASSING = re.compile(
    r"\b(UNAVAILABLE|RESOURCE_EXHAUSTED|PERMISSION_DENIED|DEADLINE_EXCEEDED|UNAUTHENTICATED|ABORTED)\b"
)
# More steps than a directory has.
_MOST_STEPS = 4096


class Damaged(ValueError):
    """What was read is not what was written."""


def reason(error: BaseException) -> str:
    """An error in one line: the libraries' messages are pages long."""
    text = " ".join(str(error).split())
    for known in ("No space left on device", "Disk quota exceeded", "Permission denied"):
        if known in text:
            return known
    return f"{type(error).__name__}: {text[:200]}"


def attempt(read: Callable[[], Any], *checks: Callable[[Any], None]) -> tuple[Any, str | None]:
    """(what `read` returns, None), or (None, why not) where what it reads is damaged.

    All processes have to call it together. They agree after `read` and after each check: what is
    damaged for one is so for all, and a check may compute over all devices.

    Raises:
        ConfigError: one of the functions raised it.
        TryAgain: it cannot be read just now, on any of the processes.
    """
    result, problem = _agree(read)
    for check in checks:
        if problem is None:
            _, problem = _agree(lambda check=check: check(result))
    return (result, None) if problem is None else (None, problem)


def _agree(function: Callable[[], Any]) -> tuple[Any, str | None]:
    result, problem, passing = None, None, None
    try:
        result = function()
    except ConfigError:
        raise
    except Exception as error:  # Orbax and tensorstore raise many types
        problem = reason(error)
        passing = error if _passes(error) else None
    damaged, passes = _anywhere(problem is not None, passing is not None)
    if passes:
        told = problem or "another process cannot"
        raise TryAgain(f"a checkpoint cannot be read just now ({told})") from passing
    if damaged and problem is None:
        problem = "another process could not read it"
    return result, problem


def _passes(error: Exception) -> bool:
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return False
    if isinstance(error, OSError | MemoryError | jax.errors.JaxRuntimeError):
        return True
    return _PASSING.search(str(error)) is not None


def _anywhere(*flags: bool) -> list[bool]:
    """Which of the flags are set on any process."""
    if jax.process_count() == 1:
        return list(flags)
    everywhere = multihost_utils.process_allgather(np.array(flags))
    return np.reshape(everywhere, (-1, len(flags))).any(axis=0).tolist()


def agreed_steps(there: Sequence[int]) -> list[int]:
    """The steps that process 0 found: file systems do not show all hosts the same at once."""
    if jax.process_count() == 1:
        return list(there)
    newest = np.full(_MOST_STEPS, -1)
    newest[: min(len(there), _MOST_STEPS)] = there[-_MOST_STEPS:]
    agreed = multihost_utils.broadcast_one_to_all(newest)
    return [int(step) for step in agreed if step >= 0]


def set_aside(path: epath.Path, problem: str, instead: int) -> None:
    """Renames a damaged checkpoint to <step>.damaged, where nothing takes it for one."""
    kept = path.parent / f"{path.name}.damaged"
    if jax.process_index() == 0:
        number = 1
        while kept.exists():
            number += 1
            kept = path.parent / f"{path.name}.damaged-{number}"
        path.rename(kept)
    log.warning(
        "the checkpoint of step %s is damaged (%s); it is %s now, and the run goes on from that of "
        "step %d",
        path.name,
        problem,
        kept,
        instead,
    )
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"set aside {path.name}")


def quiet_orbax() -> None:
    """Keeps Orbax from logging the stack of each of its threads: the error itself is told of."""
    logging.getLogger("absl").addFilter(_not_orbax)


def _not_orbax(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in record.pathname)
