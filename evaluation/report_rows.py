"""Rows of results as a report shows them: flat, grouped into tables whose numbers compare."""

import csv
import dataclasses
import functools
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from evaluation import rows as stored

Setting = tuple[tuple[str, Any], ...]

_LOWER = {"cmmd", "distance", "fid", "fid_infinity", "kid", "sfid"}
_LOWER_ENDS = ("_distance", "_fid", "_frechet", "_kernel", "_kid")
_HIGHER = {"accuracy", "coverage", "density", "precision", "psnr", "recall", "ssim", "vendi"}
_HIGHER_ENDS = ("_score",)
# Values that say how sure or how well posed another one is.
_PART_ENDS = ("_eigenvalue", "_rank", "_count", "_std", "_error", "_term")
# Parts of a row that are not what was set.
_NOT_SET = {"metric", "values", "provenance", "seconds", "count", "info"}
_NOT_SET |= {"reference", "reference_name", "extractor"}
# Of `info`: what drawing took, and what decides no image.
_TOOK = {"made_by_this_start", "seconds", "images_per_second", "provenance", "count"}
_FIRST = ("checkpoint", "ema", "solver", "grid", "steps", "guidance", "network_calls_per_image")


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a file of rows.

    Attributes:
        file: its name without the ending.
        line: number in the file, from 1, blank ones left out.
        content: as it stands.
    """

    file: str
    line: int
    content: Mapping[str, Any]

    @property
    def known(self) -> bool:
        """Whether it is a metric with values; others are shown as they are."""
        return isinstance(self.content.get("metric"), str) and bool(self.values)

    @functools.cached_property
    def values(self) -> dict[str, float]:
        """Numbers by dotted name, without the number of images."""
        found = flat(self.content.get("values"))
        return {k: v for k, v in found.items() if _is_number(v) and k not in ("", "count")}

    @functools.cached_property
    def count(self) -> Any:
        """Images, or whatever was counted; None where that is not said."""
        for part in (self.content, self.content.get("values"), self.content.get("info")):
            if isinstance(part, Mapping) and part.get("count") is not None:
                return part["count"]
        return None

    @functools.cached_property
    def _set(self) -> dict[str, Any]:
        info = self.content.get("info")
        info = (
            {k: v for k, v in info.items() if k not in _TOOK} if isinstance(info, Mapping) else {}
        )
        rest = {k: v for k, v in self.content.items() if k not in _NOT_SET}
        if "sample" in info:
            # Names and digests of what is described already.
            rest = {k: v for k, v in rest.items() if k not in ("samples", "sha256")}
        found = {k.removeprefix("sample."): v for k, v in flat(info | rest).items()}
        # How many are drawn at a time.
        found.pop("batch_size", None)
        return found

    @property
    def seed(self) -> Any:
        """Of the samples; None where there is none."""
        return self._set.get("seed")

    @functools.cached_property
    def setting(self) -> Setting:
        """All that was set but the seed: (name, value), what people look for first."""
        items = {k: v for k, v in self._set.items() if k != "seed"}
        names = [name for name in _FIRST if name in items]
        return tuple((name, items[name]) for name in (*names, *sorted(items.keys() - set(names))))

    @functools.cached_property
    def compared(self) -> dict[str, str]:
        """What has to be the same for numbers to compare, by what a person calls it."""
        return {
            "metric": str(self.content.get("metric")),
            "number of images": json.dumps(self.count),
            "reference": _identity(self.content.get("reference")),
            "extractor": json.dumps(self.content.get("extractor"), sort_keys=True),
        }


@dataclasses.dataclass(frozen=True)
class Result:
    """One setting: its rows, one a seed.

    Attributes:
        setting: (name, value) of all that was set.
        rows: of different seeds, in order.
    """

    setting: Setting
    rows: tuple[Row, ...]

    def of(self, value: str) -> tuple[float, ...]:
        """A value at each seed that has it and where it is finite."""
        found = (row.values.get(value, math.nan) for row in self.rows)
        return tuple(number for number in found if math.isfinite(number))

    def get(self, name: str) -> Any:
        """What was set; None where nothing was."""
        return dict(self.setting).get(name)


@dataclasses.dataclass(frozen=True)
class Spread:
    """A value over seeds; `std` is that of a sample (count - 1), None of a single seed."""

    least: float
    greatest: float
    mean: float
    std: float | None
    count: int

    @classmethod
    def of(cls, numbers: Sequence[float]) -> "Spread | None":
        """None where there are no numbers."""
        if not numbers:
            return None
        std = statistics.stdev(numbers) if len(numbers) > 1 else None
        return cls(min(numbers), max(numbers), statistics.fmean(numbers), std, len(numbers))


@dataclasses.dataclass(frozen=True)
class Table:
    """Results of one metric whose numbers compare.

    Attributes:
        file: of the rows.
        results: one a setting.
        repeated: rows that a later one of the same setting and seed replaces.
    """

    file: str
    results: tuple[Result, ...]
    repeated: int

    @property
    def example(self) -> Row:
        """A row; metric, count, reference and extractor are those of all."""
        return self.results[0].rows[0]

    @functools.cached_property
    def values(self) -> tuple[str, ...]:
        """Names of all values, in the order of the rows."""
        names = (name for r in self.results for row in r.rows for name in row.values)
        return tuple(dict.fromkeys(names))

    @functools.cached_property
    def headline(self) -> tuple[str, ...]:
        """Values known to be good when low or high."""
        return tuple(name for name in self.values if direction(self.file, name))

    @property
    def shown(self) -> tuple[str, ...]:
        """What a person is shown first: the headline, or where there is none all values."""
        return self.headline or self.values

    @functools.cached_property
    def varied(self) -> tuple[str, ...]:
        """Names of what differs between results."""
        return varied([result.setting for result in self.results])

    @property
    def common(self) -> Setting:
        """What is the same in all results."""
        return tuple(item for item in self.results[0].setting if item[0] not in self.varied)

    def best(self, value: str) -> set[int]:
        """Numbers of the results with the best mean of a value; none where there is no contest."""
        sign = direction(self.file, value)
        means = {k: Spread.of(result.of(value)) for k, result in enumerate(self.results)}
        means = {k: sign * spread.mean for k, spread in means.items() if spread}
        if not sign or len(set(means.values())) < 2:
            return set()
        return {k for k, mean in means.items() if mean == max(means.values())}


def direction(file: str, value: str) -> int:
    """1 where higher is better, -1 where lower is, 0 where that is not known."""
    name = value.split(".")[0]
    if f"{file}.{value}" == "caption_accuracy.all":
        return 1
    if name.endswith(_PART_ENDS):
        return 0
    if name in _LOWER or name.startswith("fd_") or name.endswith(_LOWER_ENDS):
        return -1
    return 1 if name in _HIGHER or name.endswith(_HIGHER_ENDS) else 0


def read(directory: epath.Path) -> list[Row]:
    """Rows of all .jsonl files of a directory.

    Raises:
        ConfigError: a line is damaged.
    """
    return [
        Row(path.stem, number, content)
        for path in sorted(directory.glob("*.jsonl"))
        for number, content in enumerate(stored.read(path), start=1)
    ]


def tables(rows: Iterable[Row]) -> list[Table]:
    """Rows of a metric, apart where their numbers do not compare; files and first rows in order."""
    groups: dict[tuple[str, ...], dict[str, list[Row]]] = {}
    for row in rows:
        group = groups.setdefault((row.file, *row.compared.values()), {})
        group.setdefault(json.dumps(row.setting), []).append(row)
    return [_table(key[0], list(group.values())) for key, group in groups.items()]


def _table(file: str, groups: Sequence[Sequence[Row]]) -> Table:
    results, repeated = [], 0
    for rows in groups:
        # The last of a seed counts.
        by_seed = {json.dumps(row.seed): row for row in rows}
        repeated += len(rows) - len(by_seed)
        kept = sorted(by_seed.values(), key=lambda row: _order(row.seed))
        results.append(Result(kept[0].setting, tuple(kept)))
    names = varied([result.setting for result in results])
    results.sort(key=lambda result: [_order(result.get(name)) for name in names])
    return Table(file, tuple(results), repeated)


def differing(found: Sequence[Table]) -> list[str]:
    """Why tables of one file do not compare."""
    compared = [table.example.compared for table in found]
    return [name for name in compared[0] if len({what[name] for what in compared}) > 1]


def varied(settings: Sequence[Setting]) -> tuple[str, ...]:
    """Names of what is not the same in all settings, in their order."""
    seen: dict[str, set[str]] = {}
    for setting in settings:
        for name, value in setting:
            seen.setdefault(name, set()).add(json.dumps(value))
    everywhere = [dict(setting) for setting in settings]
    names = [
        name
        for name, values in seen.items()
        if len(values) > 1 or any(name not in setting for setting in everywhere)
    ]
    first = [name for name in _FIRST if name in names]
    return (*first, *(name for name in names if name not in first))


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Leaves of nested objects by dotted name; lists are leaves."""
    if not isinstance(value, Mapping):
        return {name: value}
    parts = (flat(v, f"{name}.{k}" if name else str(k)) for k, v in value.items())
    return {k: v for part in parts for k, v in part.items()}


def to_csv(rows: Sequence[Row]) -> str:
    """All rows, a column for each value and setting that any of them has; numbers in full."""
    lines = []
    for row in rows:
        line = {"file": row.file, "line": row.line, "metric": row.content.get("metric")}
        line |= {"count": row.count, "seed": row.seed, "samples": row.content.get("samples")}
        line |= {f"values.{k}": v for k, v in flat(row.content.get("values")).items() if k}
        line |= {f"setting.{k}": v for k, v in row.setting if k != "samples"}
        for part in ("reference", "extractor", "provenance", "seconds"):
            if isinstance(row.content.get(part), Mapping):
                line |= flat(row.content[part], part)
        lines.append({k: _cell(v) for k, v in line.items()})
    buffer = io.StringIO(newline="")
    names = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.DictWriter(buffer, names, restval="")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _identity(part: Any) -> str:
    """What decides a reference: not where it was, if its content is known."""
    if isinstance(part, Mapping) and part.keys() - {"name", "path"}:
        part = {k: v for k, v in part.items() if k not in ("name", "path")}
    return json.dumps(part, sort_keys=True)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _order(value: Any) -> tuple[int, float, str]:
    """Nothing, then numbers, then texts."""
    if value is None:
        return 0, 0.0, ""
    return (1, value, "") if _is_number(value) else (2, 0.0, json.dumps(value))
