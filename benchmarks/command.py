"""What the benchmarks' command lines share: a checked config in, a JSON file out."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from training import command_line, components
from training.config import freeze, validate
from training.files import atomic_write


def checked_config(path: str, overrides: Sequence[str]) -> Any:
    """The config of `--config` with its overrides, frozen.

    Raises:
        ConfigError: a mistake in either.
    """
    config = command_line.read(path)
    command_line.override(config, overrides)
    validate(config)
    components.check(config)
    return freeze(config)


def utilization(mfu: float | None) -> str:
    """Model FLOPs utilization as a cell of a table."""
    return "unknown peak (--config.log.peak_flops)" if mfu is None else f"{100 * mfu:.1f} %"


def write_json(path: str | None, result: Mapping[str, Any]) -> None:
    """Keeps a result where `--json` says; nowhere without it."""
    if path:
        atomic_write(epath.Path(path), (json.dumps(result, indent=2) + "\n").encode())
