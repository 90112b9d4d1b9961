"""Holds the memory that the compiler foresees for a training step against what a process takes.

    python -m benchmarks.memory --config=configs/shapes_unet.py --config.train.batch_size=64

On one CPU device of Linux: the growth of resident memory over a few real steps, from after all
compilation, beside the state, batch and temporaries that `launch plan` would print.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import command, train_step
from training import command_line, run
from training.components import ConfigError

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main(arguments: Sequence[str]) -> None:
    """Reads the flags, measures, prints a table and writes JSON."""
    overrides, rest = command_line.split(arguments)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True, help="file.py or file.py:variant")
    parser.add_argument("--steps", type=int, default=3, help="steps to run")
    parser.add_argument("--json", help="file for the result")
    flags = parser.parse_args(rest)
    if not _CLEAR.exists():
        parser.error("needs /proc of Linux")
    os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        config = command.checked_config(flags.config, overrides)
        result = measure(config, flags.steps)
    except ConfigError as error:
        parser.error(str(error))
    result = {"config": flags.config, "overrides": overrides} | result
    print(table(result))
    command.write_json(flags.json, result)


def measure(config: Any, steps: int) -> dict[str, Any]:
    """Foreseen and measured bytes of `steps` steps on one device; JSON values."""
    built = run.build(config, jax.devices()[:1])
    step = built.train_step.lower(built.abstract_state, built.batch_spec).compile()
    analysis = step.memory_analysis()
    # Compiles what makes the state, and the transfer of a batch.
    jax.block_until_ready((built.init_state(), train_step.synthetic_batch(built.batch_spec)))
    _CLEAR.write_text("5")  # the peak begins at what there is now
    before = _resident("VmRSS")
    state, batch = built.init_state(), train_step.synthetic_batch(built.batch_spec)
    for _ in range(steps):
        state = jax.block_until_ready(step(state, batch))
    measured = _resident("VmHWM") - before
    arguments = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    foreseen = arguments - analysis.alias_size_in_bytes + analysis.temp_size_in_bytes
    return {
        "foreseen_bytes": foreseen,
        "of_it_temporaries": analysis.temp_size_in_bytes,
        "measured_bytes": measured,
        "error": foreseen / measured - 1,
    }


def _resident(name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text())[1]) * 1024


def table(result: dict[str, Any]) -> str:
    """The result as lines of name and value."""
    rows = {
        "config": " ".join([result["config"], *result["overrides"]]),
        "foreseen": f"{result['foreseen_bytes'] / 1e6:,.1f} MB",
        "of it temporaries": f"{result['of_it_temporaries'] / 1e6:,.1f} MB",
        "measured": f"{result['measured_bytes'] / 1e6:,.1f} MB",
        "foreseen, too much": f"{100 * result['error']:+.1f} %",
    }
    return "\n".join(f"{name:<20}{value}" for name, value in rows.items())


if __name__ == "__main__":
    main(sys.argv[1:])
