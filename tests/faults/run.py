"""A small training run under `launch local`, seen and harmed from outside."""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import orbax.checkpoint as ocp

EVERY = 5
# Of inotify.h.
_IN_ACCESS = 1


class Run:
    """A run of `steps` steps of a tiny U-Net, a checkpoint each 5, a line of metrics each step."""

    def __init__(self, workdir: Path, source: str, steps: int, processes: int, *overrides: str):
        self.workdir, self.steps, self.processes = workdir, steps, processes
        self._started = 0.0
        devices = [f"--processes={processes}", "--devices=1"]
        self._command = [
            *(sys.executable, "-m", "launch", "local", *devices, "--delay=0.2", "--retries=99"),
            *("--grace=3", "--config=configs/digits.py:smoke", f"--workdir={workdir}"),
            f"--config.data.source={source}",
            "--config.data.field=latent",
            "--config.model.channels=32",
            "--config.model.channel_mult=1,",
            "--config.model.attention_resolutions=()",
            "--config.model.num_classes=0",
            "--config.model.null_class=False",
            "--config.diffusion.label_dropout=0.0",
            "--config.sample.guidance=()",
            f"--config.train.steps={steps}",
            "--config.train.batch_size=8",
            "--config.log.every=1",
            "--config.log.preview_every=0",
            "--config.log.tensorboard=False",
            f"--config.checkpoint.every={EVERY}",
            "--config.optimizer.warmup_steps=5",
            *overrides,
        ]

    def start(self) -> None:
        """Starts the supervisor."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        out = open(self.workdir.parent / f"{self.workdir.name}.log", "ab")  # noqa: SIM115
        self._launcher = subprocess.Popen(
            self._command, stdout=out, stderr=out, start_new_session=True
        )

    def finish(self, timeout: float) -> int:
        """Waits for the end; the exit code."""
        return self._launcher.wait(timeout)

    def stop(self) -> None:
        """Kills everything that is left."""
        if self._launcher.poll() is None:
            self._launcher.kill()
            self._launcher.wait()
        wait(lambda: not self.pids(), 30, "workers of a killed launcher are still there")

    def pids(self) -> dict[int, int]:
        """Process ids of main.py by number of process."""
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError, IndexError):
                words = (entry / "cmdline").read_bytes().decode().split("\0")
                if "main.py" in Path(words[1]).name and f"--workdir={self.workdir}" in words:
                    index = [word for word in words if word.startswith("--process=")]
                    found[int(index[0].partition("=")[2]) if index else 0] = int(entry.name)
        return dict(sorted(found.items()))

    def signal(self, number: int, *which: int) -> None:
        """Sends a signal to these processes, by default to all."""
        for index, pid in self.pids().items():
            if not which or index in which:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def data_workers(self) -> list[int]:
        """Process ids of the workers that read data."""
        parents, found = set(self.pids().values()), []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError, IndexError):
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                words = (entry / "cmdline").read_bytes().decode()
                if int(stat[1]) in parents and "spawn_main" in words:
                    found.append(int(entry.name))
        return found

    def step(self) -> int:
        """The newest step in the metrics."""
        return self._newest().get("step", 0)

    def bad_steps(self) -> int:
        """Steps that were skipped so far."""
        return self._newest().get("bad_steps", 0)

    def _newest(self) -> dict:
        try:
            lines = (self.workdir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        except OSError:
            return {}
        whole = [line for line in lines if line.endswith(b"\n")]
        return json.loads(whole[-1]) if whole else {}

    def checkpoints(self) -> list[int]:
        """Steps of the finished checkpoints."""
        with contextlib.suppress(OSError):
            return sorted(ocp.utils.checkpoint_steps(self.workdir / "checkpoints"))
        return []

    def saving(self) -> bool:
        """Whether a checkpoint is being written."""
        with contextlib.suppress(OSError):
            return any(self.workdir.glob("checkpoints/*.orbax-checkpoint-tmp"))
        return False

    def bits(self, step: int) -> dict | None:
        """Fingerprints of all arrays of a checkpoint; None where it is gone."""
        path = self.workdir / "checkpoints" / str(step) / "meta" / "metadata"
        try:
            return json.loads(path.read_text())["arrays"]
        except OSError:
            return None

    def log(self) -> str:
        """What its processes have said."""
        return "".join(path.read_text(errors="replace") for path in self.workdir.glob("logs/*.log"))

    def kill(self) -> None:
        """SIGKILL to all processes, which the supervisor outlives."""
        self.signal(signal.SIGKILL)


def read_of(directory: Path, seconds: float) -> bool:
    """Waits until a file under a directory is read; whether one was in time."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_CLOEXEC)
    try:
        for folder, _, _ in os.walk(directory):
            libc.inotify_add_watch(watch, os.fsencode(folder), _IN_ACCESS)
        return bool(select.select([watch], [], [], seconds)[0])
    finally:
        os.close(watch)


def wait(true: Callable[[], bool], seconds: float, what: str, every: float = 0.003) -> None:
    """Waits until something is so.

    Raises:
        TimeoutError: it did not become so.
    """
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(every)
