"""Plots of a report: values over checkpoints, guidance and network calls, and one over another."""

import dataclasses
import io
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from evaluation.report_rows import Result, Setting, Spread, Table, direction, varied
from training.components import Call, ConfigError, parse, spell

# Lines in a plot, at most; the best ones.
MAX_LINES = 10
# Values in a picture, at most, and in a row of it.
_PANELS, _COLUMNS = 9, 3
_MARKERS = "osD^vP<>X*"
# Axes of values that span more than this are logarithmic.
_DECADES = 30.0


@dataclasses.dataclass(frozen=True)
class Line:
    """Points of one setting, ascending in x.

    Attributes:
        label: what sets it apart from the other lines.
        x: what is varied.
        spreads: a value, or a pair of them, at each x.
    """

    label: str
    x: tuple[float, ...]
    spreads: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Axis:
    """Something that is varied.

    Attributes:
        name: of files.
        label: of the axis.
        of: (x, what of the setting is not the line's, replaced) of a result; None without x.
    """

    name: str
    label: str
    of: Callable[[Result], tuple[float, Setting] | None]


def guidance_scale(names: Any) -> tuple[float, str] | None:
    """(scale, the guidances without it) of the first guidance that has a scale.

    `w` of classifier-free guidance is scale - 1.
    """
    if not isinstance(names, Sequence) or isinstance(names, str):
        return None
    for place, name in enumerate(names):
        try:
            call = parse(str(name))
        except ConfigError:
            continue
        for argument, offset in (("scale", 0.0), ("w", 1.0)):
            value = call.arguments.get(argument)
            if isinstance(value, int | float) and not isinstance(value, bool):
                rest = {k: v for k, v in call.arguments.items() if k != argument}
                without = spell(Call(call.name, rest)) if rest else call.name
                others = [*names[:place], without, *names[place + 1 :]]
                return value + offset, " + ".join(map(str, others))
    return None


def _without(setting: Setting, *names: str) -> Setting:
    return tuple(item for item in setting if item[0] not in names)


def _checkpoint(result: Result) -> tuple[float, Setting] | None:
    step = result.get("checkpoint")
    return (step, _without(result.setting, "checkpoint", "snapshots")) if _number(step) else None


def _guidance(result: Result) -> tuple[float, Setting] | None:
    found = guidance_scale(result.get("guidance"))
    if found is None:
        return None
    rest = _without(result.setting, "guidance", "network_calls_per_image")
    return found[0], (*rest, ("guidance", found[1]))


def _calls(result: Result) -> tuple[float, Setting] | None:
    calls = result.get("network_calls_per_image")
    rest = _without(result.setting, "network_calls_per_image", "steps")
    return (calls, rest) if _number(calls) else None


AXES = (
    Axis("checkpoint", "checkpoint, steps", _checkpoint),
    Axis("guidance", "guidance scale", _guidance),
    Axis("calls", "network calls per image", _calls),
)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def lines(table: Table, axis: Axis, *values: str) -> list[Line]:
    """A line a setting, the best first; none where no setting has two points.

    values: one, or two to be drawn over each other; a point has all of them.
    """
    found: dict[Setting, dict[float, tuple[Spread, ...]]] = {}
    for result in table.results:
        place = axis.of(result)
        spreads = tuple(Spread.of(result.of(value)) for value in values)
        if place is not None and all(spreads):
            # Lists of a setting are no keys.
            key = tuple((name, _text(value)) for name, value in place[1])
            found.setdefault(key, {})[place[0]] = spreads
    if max(map(len, found.values()), default=0) < 2:
        return []
    apart = varied(list(found))
    made = []
    for setting, points in found.items():
        label = ", ".join(_said(name, value) for name, value in setting if name in apart)
        x = sorted(points)
        of = tuple(points[k] if len(values) > 1 else points[k][0] for k in x)
        made.append((_best(table, values[0], [points[k][0] for k in x]), Line(label, tuple(x), of)))
    return [line for _, line in sorted(made, key=lambda pair: -pair[0])]


def _best(table: Table, value: str, spreads: Sequence[Spread]) -> float:
    return max(direction(table.file, value) * spread.mean for spread in spreads)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " + ".join(map(str, value)) or "none"
    return "none" if value == "" else str(value)


def _said(name: str, value: str) -> str:
    """Without the name where the value says what it is."""
    if name == "guidance":
        return "unguided" if value == "none" else value
    if name in ("solver", "grid"):
        return value
    return f"{name.replace('_', ' ')} {value}"


def pairs(table: Table) -> list[tuple[str, str]]:
    """(x, y): values of a table that guidance trades for each other."""
    head = table.headline
    found = [(x, y) for x, y in (("recall", "precision"), ("coverage", "density"))]
    distances = [name for name in head if direction(table.file, name) < 0]
    scores = [name for name in head if name.endswith("_score")]
    found += [(x, y) for x in distances[:1] for y in scores]
    return [pair for pair in found if set(pair) <= set(head)]


def front(points: Sequence[tuple[float, float]], signs: tuple[int, int]) -> list[bool]:
    """Which points no other one is better than in one value and as good in the other."""
    signed = np.array(points) * np.array(signs)
    beaten = [
        np.any(np.all(signed >= point, axis=1) & np.any(signed > point, axis=1)) for point in signed
    ]
    return [not b for b in beaten]


def plots(table: Table) -> dict[str, tuple[str, bytes]]:
    """(what it shows, PNG) by what is varied; only where a line has two points."""
    made = {}
    for axis in AXES:
        shown = {value: lines(table, axis, value) for value in table.shown[:_PANELS]}
        shown = {value: found for value, found in shown.items() if found}
        if shown:
            caption = f"Over {axis.label}" + _caption(list(shown.values()))
            made[axis.name] = caption, _draw(table, axis, shown)
    guided = AXES[1]
    traded = {pair: lines(table, guided, *pair) for pair in pairs(table)}
    traded = {pair: found for pair, found in traded.items() if found}
    if traded:
        caption = "Over guidance, with its scale beside points; full ones are beaten by no other"
        made["pareto"] = caption + _caption(list(traded.values())), _draw_pairs(table, traded)
    return made


def _chosen(groups: Iterable[Sequence[Line]]) -> list[str]:
    """Labels of the lines that are drawn, the same in all panels: the best by the first value."""
    return list(dict.fromkeys(line.label for found in groups for line in found))[:MAX_LINES]


def _caption(groups: Sequence[Sequence[Line]]) -> str:
    spreads = [spread for found in groups for line in found for spread in line.spreads]
    text, paired = "", any(isinstance(spread, tuple) for spread in spreads)
    if any(s.count > 1 for spread in spreads for s in (spread if paired else (spread,))):
        text = "; means over seeds" + ("" if paired else ", bars to the least and the greatest")
    labels = {line.label for found in groups for line in found}
    if len(labels) > MAX_LINES:
        text += f"; the best {MAX_LINES} of {len(labels)} settings"
    return text + "."


def _draw(table: Table, axis: Axis, shown: dict[str, list[Line]]) -> bytes:
    labels = _chosen(shown.values())
    figure, panels = _panels(len(shown), labels)
    for panel, (value, found) in zip(panels, shown.items(), strict=True):
        found = [line for line in found if line.label in labels]
        for line in found:
            middle, style = [s.mean for s in line.spreads], _style(labels, line)
            if any(s.count > 1 for s in line.spreads):
                ends = np.array([(s.mean - s.least, s.greatest - s.mean) for s in line.spreads])
                panel.errorbar(line.x, middle, np.maximum(ends.T, 0.0), **style, capsize=2)
            else:
                panel.plot(line.x, middle, **style)
        panel.set(xlabel=axis.label, ylabel=_named(table, value))
        _place(panel, axis, sorted({x for line in found for x in line.x}))
        _scale(panel, [s.mean for line in found for s in line.spreads])
    return _png(figure, panels)


def _draw_pairs(table: Table, traded: dict[tuple[str, str], list[Line]]) -> bytes:
    labels = _chosen(traded.values())
    figure, panels = _panels(len(traded), labels)
    for panel, ((x, y), found) in zip(panels, traded.items(), strict=True):
        found = [line for line in found if line.label in labels]
        points = [tuple(s.mean for s in spreads) for line in found for spreads in line.spreads]
        best = iter(front(points, (direction(table.file, x), direction(table.file, y))))
        for line in found:
            style = _style(labels, line)
            own = np.array([[s.mean for s in spreads] for spreads in line.spreads])
            full = [next(best) for _ in own]
            panel.plot(*own.T, **style | {"markerfacecolor": "white"})
            panel.plot(*own[full].T, **style | {"linestyle": "none", "label": None})
            for scale, point, unbeaten in zip(line.x, own, full, strict=True):
                # Beside every point of many lines they would cover each other.
                if unbeaten or len(found) == 1:
                    text = {"xytext": (6, 5), "textcoords": "offset points", "fontsize": 8}
                    panel.annotate(f"{scale:g}", point, **text)
        panel.margins(0.1)
        panel.set(xlabel=_named(table, x), ylabel=_named(table, y))
    return _png(figure, panels)


def _named(table: Table, value: str) -> str:
    better = {1: " (higher is better)", -1: " (lower is better)", 0: ""}
    return value.replace("_", " ").replace("$", r"\$") + better[direction(table.file, value)]


def _style(labels: Sequence[str], line: Line) -> dict[str, Any]:
    """The same in all panels."""
    k = labels.index(line.label)
    marker = _MARKERS[k % len(_MARKERS)]
    return {"label": line.label, "color": f"C{k}", "marker": marker, "ms": 4.5, "lw": 1.4}


def _panels(count: int, labels: Sequence[str]) -> tuple[Figure, list[Axes]]:
    columns = 2 if count == 4 else min(count, _COLUMNS)
    rows = -(-count // columns)
    # Room for a legend below.
    legend = 0.22 * len(labels) + 0.1 if len(labels) > 1 else 0.0
    figure = Figure(figsize=(max(4.6 * columns, 5.2), 3.4 * rows + legend), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels[count:]:
        panel.set_visible(False)
    return figure, panels[:count]


def _png(figure: Figure, panels: Sequence[Axes]) -> bytes:
    handles: dict[str, Any] = {}
    for panel in panels:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if len(handles) > 1:
        # Labels are of configs: a dollar sign is no formula.
        texts = [label.replace("$", r"\$") for label in handles]
        where = {"loc": "outside lower left", "frameon": False, "fontsize": 9}
        figure.legend(list(handles.values()), texts, **where)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _place(panel: Axes, axis: Axis, xs: Sequence[float]) -> None:
    """Ticks along x."""
    if axis.name == "calls" and xs[0] > 0 and xs[-1] >= 4 * xs[0]:
        panel.set_xscale("log")
        panel.minorticks_off()
        panel.set_xticks(_apart(xs), [f"{x:g}" for x in _apart(xs)])
    elif axis.name == "checkpoint":
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))


def _scale(panel: Axes, means: Sequence[float]) -> None:
    if min(means) > 0 and max(means) > _DECADES * min(means):
        panel.set_yscale("log")


def _apart(xs: Sequence[float]) -> list[float]:
    """Those with room for a number each on a logarithmic axis."""
    room = math.log(xs[-1] / xs[0]) / 9
    kept = [xs[0]]
    for x in xs[1:]:
        if math.log(x / kept[-1]) > room:
            kept.append(x)
    return kept
