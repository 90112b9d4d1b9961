"""Timing against another program: its process, taking turns with it, and the ratios.

The two run in turn, A B A B, so what slows the machine down for a while slows both, and the ratio
of neighbours stays sound. Torch may live in another environment: it runs under an interpreter of
its own (`benchmarks.against_diffusers`), and each side sleeps while the other works.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MODES = ("eager", "compile")
PROGRAM = Path(__file__).with_name("against_diffusers.py")
# Idle threads of either side spin for some milliseconds before they sleep.
_REST = 0.05


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a comparison."""
    parser.add_argument("--against", choices=("diffusers",), help="the same in PyTorch, in turn")
    parser.add_argument(
        "--peer-python", default=sys.executable, help="interpreter that has torch and diffusers"
    )
    parser.add_argument("--peer-modes", default="eager,compile", help="of torch: eager, compile")


def modes(flags: argparse.Namespace) -> list[str]:
    """The modes of PyTorch that the flags ask for; none without --against."""
    chosen = flags.peer_modes.split(",") if flags.against else []
    if not set(chosen) <= set(MODES):
        raise PeerError(f"--peer-modes={flags.peer_modes}: allowed are {','.join(MODES)}")
    return chosen


class PeerError(RuntimeError):
    """The other program cannot do its part; the message says why."""


class Peer:
    """The other program, with one job; a context manager, and a call of it is one timed step.

    `about` is what it said of itself at the start, `last` all that it said of its last step.
    """

    def __init__(
        self,
        python: str,
        job: Mapping[str, Any],
        program: Path = PROGRAM,
        package: str = "diffusers",
    ):
        before = time.perf_counter()
        try:
            self._process = subprocess.Popen(
                [python, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise PeerError(f"--peer-python={python} does not start: {error.strerror}") from error
        self._python, self._package, self.peak_bytes, self.last = python, package, 0, {}
        try:
            self.about = self._ask(json.dumps(job))
        except PeerError:
            self.close()
            raise
        self.start_seconds = time.perf_counter() - before

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __call__(self) -> float:
        """Seconds of one step."""
        self.last = self._ask('"step"')
        self.peak_bytes = self.last["peak_bytes"]
        return self.last["seconds"]

    def close(self) -> None:
        """Ends the process by ending its input."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _ask(self, line: str) -> dict[str, Any]:
        with contextlib.suppress(BrokenPipeError):
            print(line, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"exit code {self._process.wait()}"}
        if "error" not in answer:
            return answer
        message = answer["error"]
        if message.startswith("ModuleNotFoundError"):
            message += (
                f" in {self._python}; install torch and {self._package} there, or name an "
                "interpreter that has them: --peer-python=/path/to/python"
            )
        raise PeerError(f"--against={self._package}: {message}")


def interleave(
    timed: Mapping[str, Callable[[], float]], rounds: int, warm_up: int
) -> dict[str, list[float]]:
    """Seconds of each of `timed`, called in turn; the first `warm_up` rounds are left out."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(warm_up + rounds):
        for name, call in timed.items():
            took = call()
            if turn >= warm_up:
                seconds[name].append(took)
            if len(timed) > 1:
                time.sleep(_REST)
    return seconds


def percentiles(values: Sequence[float], name: str) -> dict[str, float]:
    """{name_p10, name_median, name_p90}."""
    keys = (f"{name}_p10", f"{name}_median", f"{name}_p90")
    return dict(zip(keys, np.percentile(values, (10, 50, 90)).tolist(), strict=True))


@contextlib.contextmanager
def against(
    jobs: Mapping[str, Mapping], python: str, parameters: int, program: Path = PROGRAM
) -> Iterator[dict[str, Peer]]:
    """The peers of some jobs, checked to have as many parameters as our network."""
    with contextlib.ExitStack() as stack:
        peers = {
            mode: stack.enter_context(Peer(python, job, program)) for mode, job in jobs.items()
        }
        for peer in peers.values():
            if peer.about["parameters"] != parameters:
                raise PeerError(
                    f"--against=diffusers: it has {peer.about['parameters']:,} parameters, ours "
                    f"{parameters:,}; they are not the same network"
                )
        yield peers


def compare(
    ours: Sequence[float], peers: Mapping[str, Peer], theirs: Mapping[str, Sequence[float]]
) -> dict[str, dict[str, Any]]:
    """Of each peer what it is, its times, and the ratios ours / theirs of neighbouring steps."""
    return {
        mode: peer.about
        | percentiles(theirs[mode], "step_seconds")
        | percentiles(np.divide(ours, theirs[mode]), "ratio")
        | {"start_seconds": peer.start_seconds, "peak_bytes": peer.peak_bytes}
        for mode, peer in peers.items()
    }


def rows(compared: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Lines for a table: time, ratio and memory of each peer."""
    lines = {}
    for mode, peer in compared.items():
        lines[f"torch {mode}"] = (
            f"{1e3 * peer['step_seconds_median']:.2f} ms, {peer['peak_bytes'] / 2**20:,.0f} MiB"
        )
        lines[f"ours / {mode}"] = (
            f"{peer['ratio_median']:.3f} ({peer['ratio_p10']:.3f} to {peer['ratio_p90']:.3f})"
        )
    return lines
