"""Counts what a training step sends between devices, without running it.

    python -m benchmarks.collectives --config=configs/digits.py --devices=8 --config.mesh.fsdp=8

The step is compiled for that many fake CPU devices. A sum that is only sliced, `scatter`, stands
for the reduce-scatter that the CPU's compiler does not know.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax

from benchmarks import command
from training import collectives, command_line, run
from training.components import ConfigError


def main(arguments: Sequence[str]) -> None:
    """Reads the flags, compiles, prints a table and writes JSON."""
    overrides, rest = command_line.split(arguments)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True, help="file.py or file.py:variant")
    parser.add_argument("--devices", type=int, default=8, help="fake CPU devices")
    parser.add_argument("--json", help="file for the result")
    flags = parser.parse_args(rest)
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={flags.devices}"
    )
    jax.config.update("jax_platforms", "cpu")
    try:
        result = measure(command.checked_config(flags.config, overrides))
    except ConfigError as error:
        parser.error(str(error))
    result = {"config": flags.config, "overrides": overrides} | result
    print(table(result))
    command.write_json(flags.json, result)


def measure(config: Any) -> dict[str, Any]:
    """Counts and bytes of the step of a config over the devices at hand; JSON values."""
    built = run.build(config)
    compiled = built.train_step.lower(built.abstract_state, built.batch_spec).compile()
    found = collectives.collectives(compiled.as_text())
    scattered = [each for each in found if each.sliced]
    rest = [each for each in found if not each.sliced]
    rows = collectives.summary(rest)
    if scattered:
        rows["scatter"] = collectives.summary(scattered)["all-reduce"]
    return {"devices": built.mesh.size, "mesh": dict(built.mesh.shape), "collectives": rows}


def table(result: dict[str, Any]) -> str:
    """A line for each kind: how many run, of how many bytes."""
    lines = [f"{result['devices']} devices, mesh {json.dumps(result['mesh'])}"]
    for kind, row in result["collectives"].items():
        lines.append(f"{kind:<20}{row['count']:>6} {row['bytes'] / 1e6:>12,.3f} MB")
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
