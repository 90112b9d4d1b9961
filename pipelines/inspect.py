"""A picture of what a config trains and samples over noise levels: `--mode=inspect`.

    <workdir>/inspect.png

Nothing is trained. A learned schedule is drawn as the run's checkpoint has it, where the work
directory holds a run of this config, and else at its initial values.
"""

import io
import os
import textwrap
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import diffusion
from diffusion.induced import Induced, Path, induced, path
from training import checkpoints, components, tasks
from training.components import ConfigError
from training.config import differences
from training.files import atomic_write
from training.mesh import make_mesh
from training.workdir import Workdir

_LOGSNR = "log-SNR    (noise $\\leftarrow$   $\\rightarrow$ data)"
# A weight below this share of the curve's largest is not worth an axis.
_SMALLEST = 1e-12


def inspect(config: Any, directory: str | os.PathLike[str]) -> None:
    """Draw `config.diffusion` and the grid of `config.sample` and print their numbers.

    Raises:
        ConfigError: the config does not describe an objective.
    """
    workdir = Workdir(directory)
    if components.parse(config.task).name == "classifier":
        raise ConfigError("config.task = 'classifier': has no objective over noise levels to draw")
    task = tasks.make_task(config)
    params, origin = _learned(config, workdir, task)
    curves, weights = path(task.objective, params), induced(task.objective, params)
    levels, refused = _grid(config, task.schedule.bind(params.get("schedule", {})))
    if jax.process_index() == 0:
        picture = draw(config, curves, weights, levels, refused, origin)
        atomic_write(workdir.path / "inspect.png", picture)
        print(report(curves, weights, levels, refused, origin), flush=True)
        print(os.fspath(workdir.path / "inspect.png"), flush=True)


def _learned(config: Any, workdir: Workdir, task: Any) -> tuple[dict, str]:
    """(what the objective learns, where that is from); empty where it learns nothing."""
    initial = task.objective.init(jax.random.key(config.seed))
    if not initial:
        return {}, ""
    if workdir.config.exists() and checkpoints.steps(workdir.checkpoints):
        changed = [name for name, _, _ in differences(workdir.read_config(), config)]
        if not any(name.startswith(("task", "data.", "model.", "diffusion.")) for name in changed):
            params, step = checkpoints.restore_for_sampling(
                workdir.checkpoints,
                config.sample.ema,
                task.init,
                make_mesh(**config.mesh),
                config.sample.checkpoint,
            )
            return jax.device_get(task.split(params)[1]), f"learned values of step {step}"
    return jax.device_get(initial), "learned values as they start"


def _grid(
    config: Any, schedule: diffusion.Schedule
) -> tuple[diffusion.NoiseLevel | None, str | None]:
    """(levels that sampling visits, None), or (None, why there are none)."""
    settings = config.sample
    make = components.build(diffusion.GRIDS, settings.grid, "config.sample.grid")
    try:
        return make(schedule, settings.steps, settings.last_step), None
    except ValueError as error:
        return None, str(error)


def report(
    curves: Path,
    weights: Induced,
    levels: diffusion.NoiseLevel | None,
    refused: str | None,
    origin: str,
) -> str:
    """The numbers, for a terminal."""

    def ends(name: str, t: float, logsnr: float, alpha: float, sigma: float) -> str:
        return f"{name:9} t {t:<8g} log-SNR {logsnr:<9.4f} alpha {alpha:<11.5g} sigma {sigma:.5g}"

    lines = [ends("start", *(f[0] for f in curves)), ends("end", *(f[-1] for f in curves))]
    low, middle, high = np.quantile(weights.draws, (0.01, 0.5, 0.99))
    lines.append(f"training  log-SNR of 98% of draws {low:.3f} to {high:.3f}, median {middle:.3f}")
    lines.append(f"weight    of the network's own squared error, mean {weights.mean_raw:.6g}")
    if levels is None:
        lines.append(f"sampling  none: {refused}")
    else:
        lines.append(ends("first", *(f[0] for f in levels)))
        lines.append(ends("last", *(f[-1] for f in levels)))
    return "\n".join([*lines, *([origin] if origin else [])])


def draw(
    config: Any,
    curves: Path,
    weights: Induced,
    levels: diffusion.NoiseLevel | None,
    refused: str | None,
    origin: str,
) -> bytes:
    """The picture, as a PNG."""
    figure = Figure(figsize=(15, 9.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3).ravel()
    _schedule(axes[0], axes[1], curves, levels)
    _density(axes[2], weights)
    _weights(axes[3], weights, config.diffusion)
    _total(axes[4], weights)
    _levels(axes[5], config.sample, levels, refused)
    low, high = weights.logsnr[0], weights.logsnr[-1]
    margin = 0.03 * (high - low) + 0.1
    for axis in axes[2:5]:
        axis.set(xlabel=_LOGSNR, xlim=(low - margin, high + margin))
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.title.set_fontsize(11)
    settings = config.diffusion
    names = (settings.schedule, settings.parameterization, settings.time_sampler)
    title = f"schedule {names[0]}\npredicts {names[1]}   |   times {names[2]}   |   "
    title += f"weighting {settings.weighting}   |   loss {settings.loss}"
    figure.suptitle(title + (f"   |   {origin}" if origin else ""), fontsize=12)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _schedule(left: Axes, right: Axes, curves: Path, levels: diffusion.NoiseLevel | None) -> None:
    finite = np.isfinite(curves.logsnr)
    left.plot(curves.t[finite], curves.logsnr[finite], color="C0")
    left.set(xlabel="t", ylabel="log-SNR", title="log-SNR of the schedule")
    if levels is not None:
        inside = np.isfinite(levels.logsnr) & np.isfinite(levels.t)
        # Ticks at the axis, so that a thousand steps show as a density and hide nothing.
        left.plot(levels.t[inside], levels.logsnr[inside], "|", color="C3", label="sampling", ms=9)
        left.legend(frameon=False)
    right.plot(curves.t, curves.alpha, color="C0", label=r"$\alpha$")
    right.plot(curves.t, curves.sigma, color="C1", label=r"$\sigma$")
    if curves.sigma[-1] > 2.0:
        right.set_yscale("log")
    right.set(xlabel="t", title=r"$z = \alpha\,x + \sigma\,\epsilon$")
    right.legend(frameon=False)


def _density(axis: Axes, weights: Induced) -> None:
    axis.hist(weights.draws, bins=80, density=True, color="C0", alpha=0.3, label="draws")
    axis.plot(weights.logsnr, np.exp(weights.log_density), color="C0", label="density")
    # A density that is infinite at an end (uniform t on a straight path) must not hide the rest.
    axis.set_ylim(0.0, 1.3 * np.quantile(np.exp(weights.log_density), 0.995))
    axis.set_title("noise levels in training")
    axis.legend(frameon=False)


def _weights(axis: Axes, weights: Induced, settings: Any) -> None:
    largest = max(np.max(curve) for curve in (weights.log_x0, weights.log_eps, weights.log_raw))
    names = (("x0", "-"), ("eps", "-"), ("raw", "--"))
    for (name, style), curve in zip(
        names, (weights.log_x0, weights.log_eps, weights.log_raw), strict=True
    ):
        label = {"x0": r"$|x - \hat x|^2$", "eps": r"$|\epsilon - \hat\epsilon|^2$"}.get(
            name, "the network's own error"
        )
        axis.semilogy(weights.logsnr, np.exp(curve), style, label=label)
    axis.set_ylim(bottom=max(_SMALLEST * np.exp(largest), axis.get_ylim()[0]))
    used = "" if settings.loss in ("simple", "hybrid") else f"  (not used by loss {settings.loss})"
    axis.set_title("weight of the squared error" + used)
    axis.legend(frameon=False)


def _total(axis: Axes, weights: Induced) -> None:
    total = np.exp(weights.log_total - np.max(weights.log_total))
    area = np.trapezoid(total, weights.logsnr)
    axis.fill_between(weights.logsnr, total / area, color="C2", alpha=0.3)
    axis.plot(weights.logsnr, total / area, color="C2")
    axis.set_ylim(0.0, 1.3 * np.quantile(total / area, 0.995))
    axis.set_title(r"what is trained: density $\times$ weight of $\epsilon$, area 1")


def _levels(
    axis: Axes, settings: Any, levels: diffusion.NoiseLevel | None, refused: str | None
) -> None:
    if levels is None:
        text = textwrap.fill(f"no grid: {refused}", 45)
        axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes)
        axis.set_axis_off()
        return
    inside = np.isfinite(levels.logsnr)
    step = np.arange(len(levels.logsnr))
    size = 3.5 if len(step) <= 200 else 1.5
    axis.plot(step[inside], levels.logsnr[inside], ".-", color="C3", ms=2 * size, lw=0.8)
    names = {True: "clean data", False: "pure noise"}
    for index in np.flatnonzero(~inside):
        value = levels.logsnr[index]
        edge = (np.max if value > 0 else np.min)(levels.logsnr[inside])
        axis.annotate(
            names[bool(value > 0)],
            (index, edge),
            xytext=(0, 5 if value > 0 else -5),
            textcoords="offset points",
            ha="right" if index else "left",
            va="bottom" if value > 0 else "top",
            color="C3",
        )
    axis.margins(y=0.09)
    axis.set(xlabel="step", ylabel="log-SNR", title=f"sampling: {settings.grid}, {settings.solver}")
