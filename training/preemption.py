"""Stops a run between two steps when its machine is to be taken away."""

import itertools
import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

# How often a process has asked. JAX stops all of them at one number, which must not come again: the
# steps of a stack begin anew with each stage.
_asks = itertools.count(1)


class Preemption:
    """Listens for SIGTERM, as schedulers send it before they take a machine.

    With several processes JAX's preemption service listens, in each of them, and agrees on a step
    at which all of them stop. A single process listens for itself, and takes Ctrl-C for the same;
    the second signal ends it at once.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, object] = {}
        alone = jax.process_count() == 1
        if alone and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)

    def reached(self) -> bool:
        """Whether the run is to stop after this step; to be asked after every one."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(next(_asks))
        return self._asked

    def close(self) -> None:
        """Listen no longer."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        self.close()
