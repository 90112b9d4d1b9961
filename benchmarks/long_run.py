"""Trains for long with everything on, and watches the host: memory, and the time of each step.

    python -m benchmarks.long_run --config=configs/digits.py:smoke --steps=2000 --json=out.json \\
        --config.checkpoint.every=100

The training loop itself runs, with its checkpoints, logs and previews. Every step is logged, so
each is waited for: its time is that from one request for a batch to the next, with all that holds
the loop up. Memory is what the process itself holds (RSS), read after every tenth of the run.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import input_pipeline
from benchmarks import command
from training import allocator, command_line, loop
from training.components import ConfigError
from training.workdir import provenance

_READINGS = 10


class Watched:
    """Batches that note when they were asked for, and the memory at some of these times."""

    def __init__(self, batches: Any, every: int):
        self._batches, self._every = batches, every
        self.times: list[float] = []
        self.memory: list[int] = []

    def __next__(self) -> Any:
        self.times.append(time.perf_counter())
        if len(self.times) % self._every == 0:
            self.memory.append(resident())
        return next(self._batches)

    def close(self) -> None:
        """Closes what is watched."""
        self._batches.close()


def resident() -> int:
    """Bytes of memory that this process holds."""
    status = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in status if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def main(arguments: Sequence[str]) -> None:
    """Reads the flags, trains, prints a table and writes JSON."""
    overrides, rest = command_line.split(arguments)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True, help="file.py or file.py:variant")
    parser.add_argument("--steps", type=int, default=2000, help="how long")
    parser.add_argument("--json", help="file for the result")
    flags = parser.parse_args(rest)
    if flags.steps < 100:
        parser.error(f"--steps={flags.steps}: must be 100 or more")
    try:
        own = [f"--config.train.steps={flags.steps}", "--config.log.every=1"]
        config = command.checked_config(flags.config, [*overrides, *own])
    except ConfigError as error:
        parser.error(str(error))
    allocator.keep_freed_memory()
    with tempfile.TemporaryDirectory() as workdir:
        result = measure(config, workdir)
    result = {"config": flags.config, "overrides": overrides} | result
    print(table(result))
    command.write_json(flags.json, result)


def measure(config: Any, workdir: str) -> dict[str, Any]:
    """Trains in a new work directory; seconds and bytes."""
    every = config.train.steps // _READINGS
    made: list[Watched] = []
    original = input_pipeline.device_batches

    def watched(*arguments: Any) -> Watched:
        made.append(Watched(original(*arguments), every))
        return made[0]

    input_pipeline.device_batches = watched
    try:
        loop.train(config, workdir)
    finally:
        input_pipeline.device_batches = original
    times, memory = made[0].times, made[0].memory
    # The first of them have compiled the preview, and filled the caches.
    steps = [b - a for a, b in itertools.pairwise(times)][every:]
    growth = memory[-1] - memory[0]
    return {
        "steps": len(times),
        "median_seconds": statistics.median(steps),
        "p99_seconds": statistics.quantiles(steps, n=100, method="inclusive")[98],
        "longest_seconds": max(steps),
        "resident_bytes": memory,
        "growth_bytes_a_step": growth / (every * (len(memory) - 1)),
        "provenance": provenance(),
    }


def table(result: dict[str, Any]) -> str:
    """For people."""
    milliseconds = {name: 1000 * result[f"{name}_seconds"] for name in ("median", "p99", "longest")}
    memory = " ".join(f"{number / 2**20:.1f}" for number in result["resident_bytes"])
    ratio = milliseconds["p99"] / milliseconds["median"]
    return "\n".join(
        (
            "step: " + ", ".join(f"{name} {value:.1f} ms" for name, value in milliseconds.items()),
            f"p99 / median: {ratio:.2f}",
            f"memory (MiB) after each tenth of {result['steps']} steps: {memory}",
            f"growth: {result['growth_bytes_a_step']:.0f} bytes a step",
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
