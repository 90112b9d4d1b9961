"""Ends a process that makes no progress, so that it can be started again."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable

from training.exit_codes import RETRY


class Watchdog:
    """Watches for a host that hangs: in its data, in its file system, in a collective.

    A process that dies is noticed by JAX itself (`--heartbeat`); one that hangs answers heartbeats
    for ever. All processes of a run wait for the one that hangs, so all of them end.

    Where a library hangs with Python's lock in hand no thread of Python can do that; then
    faulthandler's own thread tells where, and ends the process like a crash (exit code 1).

    Args:
        limit: seconds without a `beat` after which the process ends; 0: never.
        doing: says what the process is busy with, for the message; 'compile' is allowed any time.
        who: what the process is called in the message.
        end: replaces the end of the process, for tests; without Python's lock it is not asked.
    """

    def __init__(
        self,
        limit: float,
        doing: Callable[[], str],
        who: str = "this process",
        end: Callable[[int], None] = os._exit,
    ):
        self._limit, self._doing, self._who, self._end = limit, doing, who, end
        self._step, self._last = 0, time.monotonic()
        self._closed = threading.Event()
        if limit > 0:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self, step: int) -> None:
        """Note progress; cheap enough for every step."""
        self._step, self._last = step, time.monotonic()

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._limit / 10)):
            faulthandler.dump_traceback_later(self._limit, exit=True, file=sys.__stderr__)
            doing = self._doing()
            if doing == "compile":
                self._last = time.monotonic()
            silent = time.monotonic() - self._last
            if silent > self._limit:
                print(
                    f"main.py: {self._who} made no progress for {silent:.0f} s "
                    f"(config.train.stall_seconds = {self._limit:g}) after step {self._step}, in "
                    f"its part {doing!r}. It ends with exit code {RETRY}, and goes on from the "
                    "newest checkpoint when started again. Where its threads are:",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
                self._end(RETRY)
                break
        faulthandler.cancel_dump_traceback_later()
