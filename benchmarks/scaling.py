"""Overhead of splitting one training step over fake devices of one machine, as ratios to one.

    python -m benchmarks.scaling --config=configs/shapes_unet.py --config.train.batch_size=64 \\
        --devices=1,2,4,8 --steps=10 --json=scaling.json

The work is the same always: the same global batch over 1, 2, 4, 8 devices that share the same
cores, along data, fsdp or tensor, each in a process of its own. Without overhead every ratio is 1.
A ratio tells what partitioning, collectives and duplicated work cost on this machine; of the
speed of a network between machines it tells nothing.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import command
from training.components import ConfigError

AXES = ("data", "fsdp", "tensor")


def main(arguments: Sequence[str]) -> None:
    """Reads the flags, measures, prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True, help="file.py or file.py:variant")
    parser.add_argument("--devices", default="1,2,4,8", help="how many, in turn")
    parser.add_argument("--axes", default=",".join(AXES), help="axes of the mesh, in turn")
    parser.add_argument("--steps", type=int, default=10, help="steps to time of each")
    parser.add_argument("--json", help="file for the result")
    flags, overrides = parser.parse_known_args(arguments)
    counts = [int(count) for count in flags.devices.split(",")]
    axes = flags.axes.split(",")
    if counts[0] != 1 or not set(axes) <= set(AXES):
        parser.error("--devices begins with 1, --axes are some of " + ",".join(AXES))
    try:
        command.checked_config(flags.config, overrides)
    except ConfigError as error:
        parser.error(str(error))
    layouts = [(axes[0], 1), *((axis, n) for axis in axes for n in counts[1:])]
    rows = [
        {"axis": axis, "devices": n} | _timed(flags.config, overrides, axis, n, flags.steps)
        for axis, n in layouts
    ]
    result = {"config": flags.config, "overrides": overrides, "rows": ratios(rows)}
    print(table(result))
    command.write_json(flags.json, result)


def _timed(config: str, overrides: Sequence[str], axis: str, count: int, steps: int) -> dict:
    """Times the step by `benchmarks.train_step` in a process with `count` devices."""
    mesh = {"data": 1, "fsdp": 1, "tensor": 1} | {axis: count}
    arguments = [f"--config.mesh.{name}={size}" for name, size in mesh.items()]
    program = (
        "import json, sys; from benchmarks import command, train_step; "
        "config = command.checked_config(sys.argv[1], sys.argv[3:]); "
        "print(json.dumps(train_step.measure(config, int(sys.argv[2]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, config, str(steps), *overrides, *arguments],
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
        },
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{axis} over {count} devices failed:\n{done.stderr[-2000:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    names = ("step_seconds_median", "step_seconds_p10", "step_seconds_p90", "host_peak_rss_bytes")
    return {name: told[name] for name in names} | {"compile_seconds": told["compile_seconds"]}


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row with its median time over that of one device, the first."""
    one = rows[0]["step_seconds_median"]
    return [row | {"ratio": row["step_seconds_median"] / one} for row in rows]


def table(result: dict[str, Any]) -> str:
    """A line for each layout."""
    lines = [f"{'mesh':<14}{'step':>12}{'to 1 device':>14}{'compile':>11}{'memory':>12}"]
    for row in result["rows"]:
        lines.append(
            f"{row['axis'] + ' ' + str(row['devices']):<14}"
            f"{1e3 * row['step_seconds_median']:>9.1f} ms{row['ratio']:>14.2f}"
            f"{row['compile_seconds']:>9.1f} s{row['host_peak_rss_bytes'] / 2**20:>8,.0f} MiB"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
