"""The comparison of priors as Markdown and as a picture."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Of a standard normal, above which 2.5% lie.
_Z = 1.959964


def interval(share: float, count: int) -> tuple[float, float]:
    """95% confidence interval of a share of `count` cases (Wilson 1927)."""
    z = _Z**2 / count
    middle = (share + z / 2) / (1 + z)
    half = math.sqrt(share * (1 - share) * z + z**2 / 4) / (1 + z)
    return max(0.0, middle - half), min(1.0, middle + half)


def attributes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Those that captions name, in their own order."""
    return list(rows[0]["caption_accuracy"]["attributes"])


def tables(result: dict[str, Any]) -> str:
    """Two tables: embeddings and pictures; pictures by attribute."""
    rows = result["rows"]
    names = attributes(rows)
    head = (
        "prior",
        "parameters",
        "cosine (others)",
        "R@1",
        "R@5",
        "diversity",
        "caption right (95%)",
        "picture cosine",
        "picture R@1",
        "picture R@5",
    )
    lines = _head(head)
    for row in rows:
        drawn, decoded = row["prior_quality"], row["decoded_quality"]
        right = row["caption_accuracy"]["all"]
        low, high = interval(right, row["caption_accuracy"]["count"])
        cells = (
            row["prior"],
            f"{row['parameters']:,}" if row["parameters"] else "",
            f"{drawn['cosine']:.3f} ({drawn['cosine_unrelated']:.3f})",
            _percent(drawn["recall"]["1"]),
            _percent(drawn["recall"]["5"]),
            # Of equal draws it is 0 to within rounding, to either side.
            f"{max(drawn['diversity'], 0.0):.3f}",
            f"{_percent(right)} ({100 * low:.1f} to {100 * high:.1f})",
            f"{decoded['cosine']:.3f}",
            _percent(decoded["recall"]["1"]),
            _percent(decoded["recall"]["5"]),
        )
        lines.append(_line(cells))
    lines += ["", *_head(("right", *(name.replace("_", " ") for name in names)))]
    for row in rows:
        shares = row["caption_accuracy"]["attributes"]
        lines.append(_line((row["prior"], *(_percent(shares[name]) for name in names))))
    real = rows[0]["caption_accuracy"]["real"]
    lines += [
        "",
        f"{result['count']} captions of the split '{result['split']}', seed {result['seed']}. The "
        f"reader of scenes reads {_percent(real)} of the split's own pictures as captioned.",
    ]
    return "\n".join(lines) + "\n"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _head(cells: Sequence[str]) -> list[str]:
    return [_line(cells), "|" + " --- |" * len(cells)]


def plot(result: dict[str, Any], path: Path) -> None:
    """Captions that are right, embeddings before and after decoding, and each attribute."""
    rows = result["rows"]
    figure = Figure(figsize=(15, 1.6 + 0.5 * len(rows)), layout="constrained")
    accuracy, found, each = figure.subplots(1, 3, width_ratios=(1, 1, 1.3))
    _accuracy(accuracy, rows)
    _recall(found, rows)
    _attributes(each, rows)
    for axis in (accuracy, found, each):
        axis.set_yticks(range(len(rows)), [row["prior"] for row in rows])
        axis.set_ylim(len(rows) - 0.5, -0.5)
    for axis in (found, each):
        axis.tick_params(labelleft=False)
    FigureCanvasAgg(figure).print_png(path)


def _accuracy(axis: Axes, rows: Sequence[dict[str, Any]]) -> None:
    shares = np.array([row["caption_accuracy"]["all"] for row in rows])
    counts = [row["caption_accuracy"]["count"] for row in rows]
    ends = [interval(s, n) for s, n in zip(shares, counts, strict=True)]
    errors = np.abs(np.array(ends).T - shares)
    axis.barh(range(len(rows)), shares, xerr=errors, color="C0", capsize=3)
    axis.axvline(rows[0]["caption_accuracy"]["real"], color="black", linewidth=1, linestyle=":")
    axis.set(xlim=(0, 1.02), xlabel="pictures as captioned (95%); dotted: real pictures")


def _recall(axis: Axes, rows: Sequence[dict[str, Any]]) -> None:
    places = np.arange(len(rows))
    for offset, what, label in (
        (-0.2, "prior_quality", "embedding"),
        (0.2, "decoded_quality", "picture of it"),
    ):
        values = [row[what]["recall"]["1"] for row in rows]
        axis.barh(places + offset, values, height=0.38, label=label)
    axis.set(xlim=(0, 1.02), xlabel="true image is the nearest (R@1)")
    axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)


def _attributes(axis: Axes, rows: Sequence[dict[str, Any]]) -> None:
    names = attributes(rows)
    shares = np.array([[row["caption_accuracy"]["attributes"][n] for n in names] for row in rows])
    axis.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for (i, j), share in np.ndenumerate(shares):
        colour = "white" if share < 0.6 else "black"
        axis.text(j, i, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=9)
    axis.set_xticks(range(len(names)), [n.replace("_", " ") for n in names], rotation=30)
    axis.set_title("attributes right, %", fontsize=10)
