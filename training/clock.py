"""Wall time of a run, split into parts, and the line that tells of its progress."""

import contextlib
import datetime
import io
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import jax
from tqdm import tqdm

# What images/s counts: waiting for data is part of a training step's cost, compiling, saving and
# drawing previews are not.
RATE_PARTS = ("data", "step")
OTHER = "other"


class Clock:
    """Splits wall time into named parts that do not overlap and leave nothing out.

        with clock("data"):
            batch = next(batches)

    A part inside a part counts for the inner one alone; time outside every part is "other". JAX
    returns before the device is done: the device's time falls into the part that waits for it, so
    the parts of an interval are right when it ends with a blocking read inside clock("step").

    Args:
        now: seconds, never going back.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now = now
        self._last = now()
        self._open: list[str] = []
        self._since_split: dict[str, float] = {}
        self._totals: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time what is inside as `part`."""
        self._charge()
        self._open.append(part)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def part(self) -> str:
        """The part that is open now."""
        # By any thread: the list may become empty at any moment.
        return next(reversed(self._open), OTHER)

    def split(self) -> dict[str, float]:
        """Seconds of each part since the last split; their sum is the wall time since then."""
        self._charge()
        split, self._since_split = self._since_split, {}
        return split

    def totals(self) -> dict[str, float]:
        """Seconds of each part since the clock was made."""
        self._charge()
        return dict(self._totals)

    def eta(self, done: int, remaining: int) -> float | None:
        """Seconds for `remaining` steps at the pace of the `done` ones, compiling left out."""
        totals = self.totals()
        if done == 0:
            return None
        return (sum(totals.values()) - totals.get("compile", 0.0)) / done * remaining

    def _charge(self) -> None:
        now = self._now()
        part = self._open[-1] if self._open else OTHER
        for record in (self._since_split, self._totals):
            record[part] = record.get(part, 0.0) + now - self._last
        self._last = now


def rate(images: int, split: Mapping[str, float]) -> float | None:
    """Images per second over the step and data time of a `Clock.split`; None where that is 0."""
    seconds = sum(split.get(part, 0.0) for part in RATE_PARTS)
    return images / seconds if seconds > 0 else None


class Progress:
    """Tells a person how far a job is: a bar on a terminal, else a plain line a log interval.

    Process 0 alone shows anything.

    Args:
        total: units of work in all.
        done: units that earlier starts did.
        unit: what is counted.
        stream: where to; a file gets whole lines without control characters.
        every: seconds between two lines at the least; the first and the last always come.
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        unit: str = "step",
        stream: io.TextIOBase | None = None,
        every: float = 0.0,
    ):
        self._total, self._unit, self._every = total, unit, every
        self._last_line = -math.inf
        self._stream = stream or sys.stderr
        self._shown = jax.process_index() == 0
        self._bar: tqdm | None = None
        if self._shown and self._stream.isatty():
            self._bar = tqdm(
                total=total, initial=done, unit=unit, file=self._stream, dynamic_ncols=True
            )

    def update(self, done: int) -> None:
        """Move the bar; cheap enough for every step."""
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

    def log(self, done: int, values: Mapping[str, float], eta: float | None = None) -> None:
        """Show values: in the bar, or as a line `step 100/1000  loss 0.0123  eta 0:01:05`."""
        shown = [f"{name} {value:.4g}" for name, value in values.items()]
        if self._bar is not None:
            self._bar.set_postfix_str("  ".join(shown))
            self.update(done)
            return
        now = time.monotonic()
        if not self._shown or (now - self._last_line < self._every and done < self._total):
            return
        self._last_line = now
        if eta is not None:
            shown.append(f"eta {datetime.timedelta(seconds=round(eta))}")
        line = "  ".join([f"{self._unit} {done}/{self._total}", *shown])
        # A full disk under a log file is no reason to end a run.
        with contextlib.suppress(OSError):
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the terminal on a fresh line."""
        if self._bar is not None:
            self._bar.close()
