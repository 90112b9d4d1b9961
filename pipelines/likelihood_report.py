"""What `--mode=likelihood` tells of its numbers: means, a table of terms, a picture."""

import io
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training.components import ConfigError

# Rows of the printed table of terms beside that of the first.
_RANGES = 10

Rows = dict[str, np.ndarray]


def _named(rows: Rows, kind: str) -> Rows:
    return {name.split("/", 1)[1]: v for name, v in rows.items() if name.startswith(f"{kind}/")}


def _mean(values: np.ndarray) -> dict[str, float]:
    """Mean over images, and its standard error (0 of a single image)."""
    values = np.asarray(values, np.float64)
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return {"mean": float(values.mean()), "standard_error": float(error)}


def summary(rows: Rows, method: str) -> dict[str, Any]:
    """Bits/dim and their parts, means with standard errors over images.

    Raises:
        ConfigError: an image has no finite number.
    """
    parts = {name: np.asarray(v, np.float64) for name, v in _named(rows, "part").items()}
    bits = sum(parts.values())
    bad = np.flatnonzero(~np.isfinite(bits))
    if len(bad):
        raise ConfigError(
            f"config.likelihood.method = {method!r}: {len(bad)} of {len(bits)} images have no "
            f"finite number, the first is image {bad[0]}. With 'ode' raise max_steps or tolerance, "
            "or take solver='rk4'"
        )
    return {
        "bits_per_dim": _mean(bits),
        "nats_per_dim": _mean(bits * np.log(2.0)),
        "parts": {name: _mean(values) for name, values in parts.items()},
        "counts": {
            name: {"mean": float(values.mean()), "max": float(values.max())}
            for name, values in _named(rows, "count").items()
        },
    }


def terms(rows: Rows) -> Rows:
    """Columns by noise level, least noisy first: means over the images, and how many there are.

    Levels are the steps t of a chain; of continuous time they are the parts of the range of logsnr
    that each image has a draw in. Empty where the method knows no single levels.
    """
    values = {k: np.asarray(v, np.float64) for k, v in _named(rows, "term").items()}
    if not values:
        return {}
    shape = values["bits"].shape
    place = values.pop("t", np.broadcast_to(np.arange(shape[1]), shape)).astype(int).ravel()
    found, index = np.unique(place, return_inverse=True)
    images = np.bincount(index)
    means = {name: np.bincount(index, v.ravel()) / images for name, v in values.items()}
    return {"t": found, "logsnr": means.pop("logsnr")} | means | {"images": images}


def csv(table: Rows) -> bytes:
    """The table with a line of names."""
    lines = [",".join(table)]
    lines += [
        ",".join(f"{value:.9g}" for value in row) for row in zip(*table.values(), strict=True)
    ]
    return ("\n".join(lines) + "\n").encode()


def text(results: dict[str, Any], table: Rows) -> str:
    """For a terminal: the parts with their errors, and the terms in ranges of t."""
    lines = [f"{'bits/dim':<16} {'mean':>10} {'std. error':>11}"]
    named = results["parts"] | {"total": results["bits_per_dim"]}
    for name, value in named.items():
        lines.append(f"{name:<16} {value['mean']:>10.4f} {value['standard_error']:>11.4f}")
    counts = (f"{name} {value['mean']:.4g}" for name, value in results["counts"].items())
    lines.append(f"over {results['count']} images; " + ", ".join(counts))
    if table:
        lines.append("")
        names = ("bits a term", "x0 mse", "eps mse")
        lines.append(f"{'t':<12} {'log-SNR':>17} " + " ".join(f"{name:>11}" for name in names))
        # Step 0 of a chain is the decoder, unlike all others.
        rest = np.arange(1, len(table["t"]))
        for part in (np.zeros(1, int), *np.array_split(rest, min(_RANGES, max(len(rest), 1)))):
            if not len(part):
                continue
            first, last = part[0], part[-1]
            span = f"{table['t'][first]} - {table['t'][last]}"
            levels = f"{table['logsnr'][first]:.2f} to {table['logsnr'][last]:.2f}"
            means = (np.mean(table[name][part]) for name in ("bits", "x0_mse", "eps_mse"))
            lines.append(f"{span:<12} {levels:>17} " + " ".join(f"{m:>11.4g}" for m in means))
    return "\n".join(lines) + "\n"


def draw(table: Rows, results: dict[str, Any], title: str) -> bytes:
    """The terms over t (where the bits are) and the squared errors over logsnr, as a PNG."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    t, logsnr = table["t"], table["logsnr"]
    # From 1 on the axis: term 0 has a place on a logarithmic axis, too.
    left.loglog(t + 1, np.maximum(table["bits"], np.finfo(float).tiny), ".-", lw=0.9, ms=3)
    left.set(xlabel="t + 1", ylabel="bits/dim", title="terms of the bound")
    seen = np.isfinite(logsnr)
    right.semilogy(logsnr[seen], table["x0_mse"][seen], color="C0", label=r"$|x - \hat x|^2$")
    label = r"$|\epsilon - \hat\epsilon|^2$"
    right.semilogy(logsnr[seen], table["eps_mse"][seen], color="C1", label=label)
    right.set(xlabel="log-SNR", title="mean squared error a dimension")
    right.legend(frameon=False)
    for axis in (left, right):
        axis.grid(alpha=0.25)
    total = results["bits_per_dim"]
    figure.suptitle(f"{title}   |   {total['mean']:.4f} ± {total['standard_error']:.4f} bits/dim")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, format="png", metadata={"Software": None})
    return buffer.getvalue()
