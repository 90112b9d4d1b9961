"""Rows of results: <workdir>/evaluation/<metric>.jsonl, a JSON object a line."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils

from training import components
from training.components import ConfigError
from training.files import atomic_write
from training.workdir import Workdir, provenance


def run_metrics(
    workdir: Workdir,
    metrics: Mapping[str, Callable],
    about: Mapping[str, Any],
    run: Callable[[Callable], dict[str, Any]],
    more: Callable[[], Mapping[str, Any]] = dict,
) -> dict[str, dict[str, Any]]:
    """The values of each metric, kept as a row and printed; a row that is there is not made again.

    Args:
        workdir: of the rows.
        metrics: by what they are called in a config.
        about: what the values depend on, JSON values.
        run: gives the values of a metric. With several processes those of the first count.
        more: gives what goes with a new row beside.
    """
    about, found = json.loads(json.dumps(about)), {}
    done = {spec: find(read(path_of(workdir, spec)), {"metric": spec} | about) for spec in metrics}
    # Every process has looked before the first one writes.
    multihost_utils.sync_global_devices("evaluate")
    for spec, metric in metrics.items():
        row = done[spec]
        if row is None:
            values = run(metric)
            row = {"metric": spec, "values": values, "provenance": _provenance(), **about, **more()}
            _append(path_of(workdir, spec), row)
        if jax.process_index() == 0:
            print(f"{spec}: {json.dumps(row['values'])}", flush=True)
        found[spec] = row["values"]
    return found


def path_of(workdir: Workdir, spec: str) -> epath.Path:
    """Where the rows of a metric are; arguments do not count."""
    return workdir.evaluation / f"{components.parse(spec)[0]}.jsonl"


def read(path: epath.Path) -> list[dict[str, Any]]:
    """All rows of a file, none where there is no file.

    Raises:
        ConfigError: a line is damaged.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else (), start=1):
        if not line.strip():
            continue
        where = f"{os.fspath(path)}: line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(
                f"{where}: damaged, no JSON ({error}); delete the line, and --mode=evaluate "
                "measures again what it held"
            ) from None
        if not isinstance(row, dict):
            raise ConfigError(f"{where}: {row!r:.60} is no row, a JSON object; delete it")
        rows.append(row)
    return rows


def find(rows: list[dict[str, Any]], wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """The first row that has all that is wanted."""
    return next((row for row in rows if wanted.items() <= row.items()), None)


def _provenance() -> dict[str, Any]:
    what = provenance()
    # The diff is long and the same in every row; run.json and info.json have theirs.
    what["code"] = {name: what["code"].get(name) for name in ("commit", "dirty")}
    return what


def _append(path: epath.Path, row: dict[str, Any]) -> None:
    if jax.process_index() != 0:
        return
    before = path.read_bytes() if path.exists() else b""
    atomic_write(path, before + json.dumps(row, allow_nan=False).encode() + b"\n")
