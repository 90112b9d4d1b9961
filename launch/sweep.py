"""Many jobs from one: the product of lists of values of config fields."""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Sequence

from launch.job import Job, join
from training.components import ConfigError

FORM = "write --sweep config.field=value,value (config.seed=0,1,2)"
LONGEST_NAME = 120
_PAIRS = {"(": ")", "[": "]", "{": "}"}


def split(text: str) -> list[str]:
    """Parts at the commas that are in no bracket and no quotes: `a(x=1,y=2),b` has two parts.

    Raises:
        ConfigError: a bracket or a quote is left open.
    """
    parts, start, open_, quote = [], 0, [], ""
    for position, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in _PAIRS:
            open_.append(_PAIRS[letter])
        elif letter in _PAIRS.values():
            if not open_ or open_.pop() != letter:
                raise ConfigError(f"{text!r}: {letter!r} closes nothing")
        elif letter == "," and not open_:
            parts.append(text[start:position])
            start = position + 1
    if open_ or quote:
        raise ConfigError(f"{text!r}: {quote or open_[-1]!r} is missing")
    return [part.strip() for part in [*parts, text[start:]]]


def expand(job: Job, sweeps: Sequence[str]) -> list[Job]:
    """One job for each combination of the values, in a work directory of its own.

    Args:
        job: what they have in common; its work directory holds theirs.
        sweeps: 'config.field=value,value' each.

    Raises:
        ConfigError: not of that form, a field twice, or a value twice.
    """
    if not sweeps:
        return [job]
    axes: dict[str, list[str]] = {}
    for sweep in sweeps:
        field, values = _axis(sweep)
        if field in axes:
            raise ConfigError(f"--sweep {sweep}: config.{field} is swept twice; join the lists")
        axes[field] = values
    points = list(itertools.product(*axes.values()))
    names = _names([tuple(zip(_labels(list(axes)), point, strict=True)) for point in points])
    return [
        dataclasses.replace(
            job,
            workdir=join(job.workdir, name),
            overrides=job.overrides
            + tuple(f"--config.{field}={v}" for field, v in zip(axes, point, strict=True)),
            name=name,
        )
        for point, name in zip(points, names, strict=True)
    ]


def _axis(sweep: str) -> tuple[str, list[str]]:
    match = re.fullmatch(r"config\.([\w.]+)=(.*)", sweep, re.DOTALL)
    if not match:
        raise ConfigError(f"--sweep {sweep}: {FORM}")
    field, text = match.groups()
    try:
        values = split(text)
    except ConfigError as error:
        raise ConfigError(f"--sweep config.{field}: {error}") from None
    if "" in values:
        raise ConfigError(f"--sweep {sweep}: a value is empty; {FORM}")
    for value in values:
        if values.count(value) > 1:
            raise ConfigError(f"--sweep {sweep}: {value} is there twice")
    return field, values


def _labels(fields: list[str]) -> list[str]:
    """The last parts of dotted paths, as many as tell them apart."""

    def label(field):
        parts = field.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        alike = [sum(f".{other}".endswith(f".{end}") for other in fields) for end in ends]
        return next((end for end, count in zip(ends, alike, strict=True) if count == 1), field)

    return [label(field) for field in fields]


def _names(points: list[tuple[tuple[str, str], ...]]) -> list[str]:
    """Readable, safe in any file system, and no two alike, also where case does not count."""
    plain = [",".join(f"{label}={_safe(value)}" for label, value in point) for point in points]
    folded = [name.casefold() for name in plain]
    names = []
    for name, point in zip(plain, points, strict=True):
        if len(name) > LONGEST_NAME or folded.count(name.casefold()) > 1:
            digest = hashlib.sha256(repr(point).encode()).hexdigest()[:8]
            name = f"{name[: LONGEST_NAME - 9]}-{digest}"
        names.append(name)
    return names


def _safe(value: str) -> str:
    # Only what stands in for other characters is taken off the ends: -1 keeps its sign.
    return re.sub(r"[^A-Za-z0-9_.+-]+", " ", value).strip().replace(" ", "-") or "empty"
