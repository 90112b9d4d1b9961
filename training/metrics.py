"""Where a run's numbers go: metrics.jsonl, timing.jsonl, preview images and TensorBoard."""

import errno
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8
from tensorboardX import SummaryWriter

from training.files import atomic_write, is_bucket, persist
from training.images import save_png
from training.workdir import Workdir

Scalar = float | int | np.number | np.ndarray | jax.Array


class MetricsWriter:
    """Writes the values of a run; only process 0 has files, on the others every call is a no-op.

    A line is one JSON object, "step" first and the other names sorted, numbers in Python's shortest
    form that reads back equal: a line is a function of its values alone. It is on the disk when the
    call returns, so write the line of step s before the checkpoint of step s. JSON has no NaN and
    no infinity; they are the strings "NaN", "Infinity", "-Infinity" (`read_lines` undoes it).

    After a restore call `rewind` first.
    """

    def __init__(self, workdir: Workdir, tensorboard: bool):
        self._workdir = workdir
        self._active = jax.process_index() == 0
        self._tensorboard = tensorboard and self._active
        self._purge_step: int | None = None
        self._events: SummaryWriter | None = None

    def rewind(self, step: int) -> None:
        """Forget what was logged after `step`, the step of the restored checkpoint.

        Later lines of metrics.jsonl and timing.jsonl are cut, with a last line that a kill left
        half-written; later TensorBoard events are hidden. Preview files stay.
        """
        if not self._active:
            return
        if self._events is not None:
            raise RuntimeError("MetricsWriter.rewind() comes before the first value is written")
        for path in (self._workdir.metrics, self._workdir.timing):
            _cut(path, step)
        self._purge_step = step + 1

    def scalars(self, step: int, values: Mapping[str, Scalar]) -> None:
        """Append a line to metrics.jsonl. Values only, no times: they have to repeat to the bit."""
        self._write(self._workdir.metrics, step, values, prefix="")

    def timing(self, step: int, values: Mapping[str, Scalar | None]) -> None:
        """Append a line to timing.jsonl; None (null) where a number is not known."""
        self._write(self._workdir.timing, step, values, prefix="timing/")

    def images(self, step: int, grid: UInt8[np.ndarray, "height width channels"]) -> None:
        """Save a grid of images as previews/<step>.png."""
        if not self._active:
            return
        path = self._workdir.previews / f"{step:08d}.png"
        persist(lambda: save_png(path, grid), f"the preview of step {step}")
        if self._tensorboard:
            self._writer().add_image("preview", grid, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close the TensorBoard file; the others are always complete."""
        if self._events is not None:
            self._events.close()

    def _write(
        self, path: epath.Path, step: int, values: Mapping[str, Scalar | None], prefix: str
    ) -> None:
        if not self._active:
            return
        numbers = {name: _number(name, values[name]) for name in sorted(values)}
        line = {"step": int(step)} | {name: _encode(number) for name, number in numbers.items()}
        text = (json.dumps(line, allow_nan=False) + "\n").encode()
        persist(lambda: _append(path, text), f"{path.name} of step {step}")
        if self._tensorboard:
            for name, number in numbers.items():
                if number is not None:
                    self._writer().add_scalar(prefix + name, number, step)

    def _writer(self) -> SummaryWriter:
        if self._events is None:
            # The file's name has the time in whole seconds; the process id keeps a quick restart
            # from opening the file of the start before it.
            self._events = SummaryWriter(
                os.fspath(self._workdir),
                purge_step=self._purge_step,
                flush_secs=10,
                filename_suffix=f".{os.getpid()}",
            )
        return self._events


def read_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl or timing.jsonl, with NaN and infinities as floats again."""
    lines = epath.Path(path).read_text().splitlines()
    return [{k: _decode(v) for k, v in json.loads(line).items()} for line in lines]


def _number(name: str, value: Scalar | None) -> float | int | None:
    if value is None or isinstance(value, int | float):
        return value
    array = np.asarray(value)
    if array.ndim != 0:
        raise ValueError(f"metric {name!r} has shape {array.shape}; a scalar is needed")
    return int(array) if np.issubdtype(array.dtype, np.integer) else float(array)


def _encode(number: float | int | None) -> float | int | str | None:
    if number is None or math.isfinite(number):
        return number
    return json.dumps(number)


def _decode(value: Any) -> Any:
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value


def _append(path: epath.Path, line: bytes) -> None:
    if is_bucket(path):
        # Objects cannot be appended to; a run's lines are few megabytes.
        atomic_write(path, (path.read_bytes() if path.exists() else b"") + line)
        return
    with open(path, "ab", buffering=0) as file:
        before = file.tell()
        try:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            # Not half a line.
            file.truncate(before)
            raise


def _cut(path: epath.Path, step: int) -> None:
    """Keep the complete lines up to `step`, to the byte."""
    if not path.exists():
        return
    data = path.read_bytes()
    complete = data[: data.rfind(b"\n") + 1]
    lines = complete.splitlines(keepends=True)
    kept = b"".join(line for line in lines if json.loads(line)["step"] <= step)
    if kept != data:
        atomic_write(path, kept)
