"""Where the parameters of a run come from that starts from another one (`config.init`). No JAX.

Each comes from there, is larger than theirs and padded with zeros, or keeps the value that it was
drawn with. Names and shapes alone decide.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from training import posthoc
from training.components import ConfigError

# Of parameters, by path.
Shapes = Mapping[str, tuple[int, ...]]


class Plan(NamedTuple):
    """Where the parameters come from; paths like 'down/0/conv/kernel'.

    Attributes:
        sources: of each of ours that is not fresh, the path of theirs.
        padded: those of them that are larger than theirs.
        fresh: ours that keep the value that they were drawn with.
        unused: theirs that no parameter of ours comes from.
    """

    sources: dict[str, str]
    padded: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]


def make_plan(settings: ConfigDict, ours: Shapes, theirs: Shapes) -> Plan:
    """Decides for each of our parameters, by `rules`, `fresh` and `pad` of `config.init`.

    Raises:
        ConfigError: all mistakes, a line for each.
    """
    mistakes: list[str] = []
    fresh = _matching("fresh", settings.fresh, ours, mistakes)
    pad = _matching("pad", settings.pad, ours, mistakes)
    named = _named(settings.rules, [path for path in ours if path not in fresh], mistakes)
    padded = []
    for path, source in named.items():
        if source not in theirs:
            mistakes.append(f"{path} {ours[path]}: " + _missing(ours[path], source, theirs))
        elif (mistake := _unfit(ours[path], theirs[source], path in pad)) is not None:
            mistakes.append(f"{path} {ours[path]}: {source} there has {theirs[source]}; {mistake}")
        elif ours[path] != theirs[source]:
            padded.append(path)
    if mistakes:
        raise ConfigError(
            f"config.init.workdir = {settings.workdir!r}: its parameters do not fit:\n  "
            + "\n  ".join(mistakes)
            + "\neach of this run's must have a value of the same shape there (config.init.rules: "
            "'ours -> theirs'), be padded with zeros (config.init.pad), or keep the value that it "
            "is drawn with (config.init.fresh)"
        )
    taken = set(named.values())
    unused = tuple(path for path in theirs if path not in taken)
    return Plan(named, tuple(padded), tuple(path for path in ours if path in fresh), unused)


def _matching(field: str, patterns, paths: Shapes, mistakes: list[str]) -> set[str]:
    """Paths that any of the patterns matches."""
    found = set()
    for pattern in patterns:
        matched = {path for path in paths if re.fullmatch(pattern, path)}
        if not matched:
            mistakes.append(
                f"config.init.{field}: {pattern!r} matches no parameter of this run"
                + _near(pattern, paths)
            )
        found |= matched
    return found


def _named(rules, paths: list[str], mistakes: list[str]) -> dict[str, str]:
    """What each path is called there: by the first rule that matches all of it, or as here."""
    parsed = [[side.strip() for side in rule.split("->")] for rule in rules]
    decided, named = set(), {}
    for path in paths:
        named[path] = path
        for index, (pattern, name) in enumerate(parsed):
            if match := re.fullmatch(pattern, path):
                if index not in decided:
                    decided.add(index)
                try:
                    named[path] = match.expand(name)
                except (re.error, IndexError) as error:
                    mistakes.append(f"config.init.rules: {rules[index]!r}: {error}")
                    del named[path]
                break
    for index, (pattern, _) in enumerate(parsed):
        if index not in decided:
            mistakes.append(
                f"config.init.rules: {rules[index]!r} decides no parameter of this run (none "
                "matches, or those are fresh or of an earlier rule)" + _near(pattern, paths)
            )
    # A rule with a wrong group is wrong for each path that it matches.
    mistakes[:] = dict.fromkeys(mistakes)
    return named


def _near(name: str, paths) -> str:
    close = difflib.get_close_matches(name, paths, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _missing(shape: tuple[int, ...], name: str, theirs: Shapes) -> str:
    # Those of the same shape are what a renamed layer has.
    alike = [path for path in theirs if theirs[path] == shape]
    close = difflib.get_close_matches(name, alike, n=3, cutoff=0.3)
    close = close or difflib.get_close_matches(name, theirs, n=3, cutoff=0.5)
    hint = f"; nearest: {', '.join(f'{path} {theirs[path]}' for path in close)}" if close else ""
    return f"no {name} there{hint}"


def _unfit(ours: tuple[int, ...], theirs: tuple[int, ...], pad: bool) -> str | None:
    """Why a value of shape `theirs` cannot start one of shape `ours`, or None."""
    if ours == theirs:
        return None
    if len(ours) != len(theirs) or any(o < t for o, t in zip(ours, theirs, strict=True)):
        return "ours must be as large along each axis; leave it to config.init.fresh"
    return None if pad else "ours is larger: config.init.pad, or config.init.fresh"


def check(init: ConfigDict, defaults: ConfigDict) -> Iterator[str]:
    """What is wrong with `config.init`, as far as can be said without looking at the other run."""
    if not init.workdir:
        for field, default in defaults.items():
            if init[field] != default:
                yield (
                    f"init.{field} = {init[field]!r}: must be {default!r} without "
                    "config.init.workdir, the run to start from"
                )
    for rule in init.rules:
        sides = [side.strip() for side in rule.split("->")]
        if len(sides) != 2 or not all(sides):
            yield f"init.rules: {rule!r}: must be 'ours -> theirs', a regular expression and a name"
        else:
            yield from _check_pattern("init.rules", sides[0])
    for field in ("fresh", "pad"):
        for pattern in init[field]:
            yield from _check_pattern(f"init.{field}", pattern)
    if posthoc.is_posthoc(init.ema):
        try:
            posthoc.width(init.ema)
        except ConfigError as error:
            yield str(error).replace("config.sample.ema", "init.ema")


def _check_pattern(field: str, pattern: str) -> Iterator[str]:
    try:
        re.compile(pattern)
    except re.error as error:
        yield f"{field}: {pattern!r} is no regular expression: {error}"
