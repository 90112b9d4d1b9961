"""What a run needs and how fast it may be, from its config alone: no chip, data or weights.

    python -m launch plan --config=configs/imagenet64_adm.py --chips=v5p-64 --config.mesh.fsdp=8
    python -m launch plan --config=configs/unclip_paper.py --stage=decoder --chips=v5p-256

The training step is traced and compiled for that many devices, in a process of its own: for the
true TPU where the package libtpu is installed, which needs no TPU, and otherwise for fake CPU
devices, whose compiler lays out activations differently (docs/results/scaling.md).
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import util
from typing import Any

from launch import chips
from training import command_line
from training.components import ConfigError, nearest
from training.config import validate
from training.stack import clip_of, is_stack, stages, validate_stack

# Share of a chip's memory that a run may fill; the rest is the runtime's and fragments.
USABLE = 0.92
_DAY = 86_400


def main(arguments: Sequence[str]) -> int:
    """Reads the flags, plans, prints; 0: it fits, 1: it does not, 2: a mistake in the request."""
    overrides, rest = command_line.split(arguments)
    parser = argparse.ArgumentParser(prog="python -m launch plan", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", required=True, help="file.py or file.py:variant")
    parser.add_argument("--stage", default="", help="of a stack: which one")
    parser.add_argument("--chips", required=True, help=f"{', '.join(chips.CHIPS)}: v5p-256")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the peak to expect")
    parser.add_argument("--backend", choices=("auto", "tpu", "cpu"), default="auto")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    flags = parser.parse_args(rest)
    try:
        if not 0 < flags.mfu <= 1:
            raise ConfigError(f"--mfu={flags.mfu}: must be above 0 and at most 1")
        fleet = chips.fleet(flags.chips)
        config, teachers = read(flags.config, overrides, flags.stage)
        numbers = plan(config, teachers, fleet, flags.mfu, flags.backend)
    except ConfigError as error:
        print(f"launch plan: {error}", file=sys.stderr)
        return 2
    print(json.dumps(numbers, indent=2) if flags.json else table(numbers))
    return 0 if numbers["fits"] else 1


def read(path: str, overrides: Sequence[str], stage: str) -> tuple[Any, dict[str, Any]]:
    """(config of the run, configs of its teachers by name).

    Raises:
        ConfigError: a mistake in the config, or a stack without a stage of it.
    """
    config = command_line.read(path)
    if not is_stack(config):
        if stage:
            raise ConfigError(f"--stage={stage}: {path} is the config of a single run")
        command_line.override(config, overrides)
        validate(config)
        return config, {}
    if stage not in config.stages:
        names = ", ".join(config.order)
        hint = nearest(stage, config.order) if stage else f"it has {names}"
        raise ConfigError(f"--stage={stage}: {path} is a stack; {hint}")
    # Fields of the stage, as those of a single run.
    command_line.override(config.stages[stage], overrides)
    validate_stack(config)
    made = stages(config, "/nowhere")
    return made[stage], {"clip": made[clip_of(config)]}


def plan(
    config: Any, teachers: dict[str, Any], fleet: chips.Fleet, mfu: float, backend: str = "auto"
) -> dict[str, Any]:
    """All numbers, JSON values: bytes a device, FLOPs of all devices, seconds.

    Raises:
        ConfigError: the config does not fit that many devices.
    """
    if backend == "auto":
        there = fleet.chip.torus and util.find_spec("libtpu") is not None
        backend = "tpu" if there else "cpu"
    if backend == "tpu" and not fleet.chip.torus:
        raise ConfigError(f"--backend=tpu: {fleet.name} is no TPU")
    request = {
        "config": config.to_dict(),
        "teachers": {name: each.to_dict() for name, each in teachers.items()},
        "devices": fleet.count,
        "topology": f"{fleet.name}:{fleet.topology}" if backend == "tpu" else "",
    }
    compiled = _compile(request)
    memory = compiled["memory"]
    peak = fleet.chip.peak(config.model.dtype)
    seconds = compiled["flops"] / (fleet.count * peak * mfu)
    usable = USABLE * fleet.chip.memory
    numbers = {
        "chips": f"{fleet.name}-{fleet.count}",
        "google_name": fleet.google_name,
        "compiled_for": request["topology"] or f"{fleet.count} fake CPU devices",
        "batch_size": config.train.batch_size,
        **compiled,
        "chip_bytes": fleet.chip.memory,
        "usable_bytes": usable,
        "fits": memory["total"] <= usable,
        "mfu": mfu,
        "peak_flops": peak,
        "step_seconds": seconds,
        "images_per_second": config.train.batch_size / seconds,
        "days": config.train.steps * seconds / _DAY,
        "steps": config.train.steps,
    }
    return numbers | {"advice": [] if numbers["fits"] else advice(config, numbers)}


def _compile(request: dict[str, Any]) -> dict[str, Any]:
    """`training.compiled` in a process of its own, which has the devices that are asked for."""
    flags = f"--xla_force_host_platform_device_count={request['devices']}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        # It is a compiler here: it looks for no TPU, and several may run.
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "training.compiled"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=environment,
    )
    last = done.stdout.strip().splitlines()[-1:] or [""]
    if done.returncode:
        raise ConfigError(last[0] or f"the compiler failed:\n{done.stderr[-2000:]}")
    return json.loads(last[0])


def advice(config: Any, numbers: dict[str, Any]) -> list[str]:
    """What would make it smaller, the largest effect first."""
    memory, mesh = numbers["memory"], numbers["mesh"]
    state = sum(memory[name] for name in ("parameters", "optimizer", "averages", "frozen"))
    found = []
    if mesh["fsdp"] < numbers["devices"] // mesh["tensor"]:
        found.append((state, "--config.mesh.data=1 --config.mesh.fsdp=-1 splits the state further"))
    if not config.model.get("remat", True):
        found.append((memory["temporaries"], "--config.model.remat=True keeps fewer activations"))
    more = 2 * config.train.accumulate
    if config.train.batch_size % (more * mesh["data"] * mesh["fsdp"]) == 0:
        text = f"--config.train.accumulate={more} halves the activations"
        found.append((memory["temporaries"] / 2, text))
    if config.model.dtype == "float32":
        text = "--config.model.dtype=bfloat16 halves the activations"
        found.append((memory["temporaries"] / 2, text))
    found.sort(key=lambda item: -item[0])
    return [text for _, text in found] or ["more chips, or chips with more memory"]


def table(numbers: dict[str, Any]) -> str:
    """The plan, for a terminal."""
    memory = numbers["memory"]
    named = f" (Google's {numbers['google_name']})" if numbers["google_name"] else ""
    mesh = " x ".join(f"{axis} {size}" for axis, size in numbers["mesh"].items())
    rows = [
        ("chips", f"{numbers['chips']}{named}: {mesh}"),
        ("compiled for", f"{numbers['compiled_for']} in {numbers['compile_seconds']:.0f} s"),
        ("parameters", f"{numbers['parameters']:,}"),
        ("batch", f"{numbers['batch_size']:,}"),
        ("bytes a device", ""),
        *((f"  {name}", _bytes(size)) for name, size in memory.items()),
        ("  of", f"{_bytes(numbers['chip_bytes'])}, {USABLE:.0%} of it usable"),
        ("collectives a step", ""),
        *(
            (
                f"  {kind}",
                f"{row['count']:,} of {_bytes(row['bytes'])}, sends {_bytes(row['sent'])}",
            )
            for kind, row in numbers["collectives"].items()
        ),
        ("FLOPs a step", f"{numbers['flops']:.4g}"),
        ("step", f"{numbers['step_seconds']:.4g} s at MFU {numbers['mfu']:g} of {_peak(numbers)}"),
        ("images/s", f"{numbers['images_per_second']:,.0f}"),
        ("whole run", f"{numbers['days']:,.2f} days for {numbers['steps']:,} steps"),
        ("fits", "yes" if numbers["fits"] else "NO"),
    ]
    if not numbers["fits"]:
        parts = {name: size for name, size in memory.items() if name != "total"}
        largest = sorted(parts, key=parts.get, reverse=True)[:3]
        rows.append(("largest", ", ".join(f"{name} {_bytes(parts[name])}" for name in largest)))
        rows += [("try", text) for text in numbers["advice"]]
    return "\n".join(f"{name:<20}{value}".rstrip() for name, value in rows)


def _peak(numbers: dict[str, Any]) -> str:
    return f"{numbers['peak_flops'] / 1e12:g} TFLOP/s a chip"


def _bytes(count: float) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.2f} MB"
