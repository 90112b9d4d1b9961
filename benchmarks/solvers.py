"""Quality of a trained run's samples by solver and number of network calls.

    python -m benchmarks.solvers --workdir=runs/shapes --out=docs/results/solvers

Draws the same samples (seed and labels) by every solver at 5, 10, 20 and 50 network calls, with the
run's own clipping and guidance, and writes <out>.json with every number, <out>.md with the tables
and <out>.png with a plot. Two numbers each:

distance: Frechet's between Gaussians fitted to pixels in [-1, 1] of samples and of training images
    (`benchmarks.few_steps`); for all solvers.
error: root mean square difference of pixels in [-1, 1] to the probability-flow ODE's solution from
    the same noise, by DPM-Solver++(2M) in many steps; for solvers that add no noise.

A solver gets the most steps that its calls allow; what a two-stage rule leaves over stays unused.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from ml_collections import ConfigDict

import diffusion
from benchmarks.few_steps import Judge, features
from evaluation.metrics import frechet_distance
from training import checkpoints, tasks
from training.components import build
from training.config import freeze
from training.files import atomic_write
from training.mesh import make_mesh
from training.sampler import build_sampler, sample_labels
from training.workdir import Workdir, provenance

CALLS = (5, 10, 20, 50)
SOLVERS = {
    "DDIM": "ddim(eta=0.0)",
    "Heun": "heun()",
    "RK4": "rk4()",
    "DPM-Solver++ 2S": "dpmpp_2s()",
    "DPM-Solver++ 3S": "dpmpp_3s()",
    "DPM-Solver++ 2M": "dpmpp_2m()",
    "DPM-Solver++ 3M": "dpmpp_3m()",
    "UniPC": "unipc(order=3)",
    "DEIS": "deis(order=3)",
    "LMS": "lms(order=4)",
    "DDPM, fixed small": "ddpm(variance='fixed_small')",
    "DDPM, fixed large": "ddpm(variance='fixed_large')",
    "DPM-Solver++ 2M SDE": "dpmpp_2m_sde()",
    "DPM-Solver++ 3M SDE": "dpmpp_3m_sde()",
}
REFERENCE = ("dpmpp_2m()", 400)


def main(arguments: list[str]) -> None:
    """Draws, judges, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="of a trained run of task 'diffusion'")
    parser.add_argument("--out", required=True, help="where to write, without .json, .md, .png")
    parser.add_argument("--grid", default="uniform_logsnr", help="a line of diffusion.GRIDS")
    parser.add_argument("--count", type=int, default=1000, help="samples of each cell")
    flags = parser.parse_args(arguments)
    run = Run(Workdir(flags.workdir), flags.grid, flags.count)
    exact, _ = run.draw(*REFERENCE)
    cells = []
    for name, solver in SOLVERS.items():
        for calls in CALLS:
            steps = run.steps(solver, calls)
            if not steps:
                continue
            images, used = run.draw(solver, steps)
            cell = {"solver": name, "column": calls, "calls": used, "steps": steps}
            cell["distance"] = run.distance(images)
            if not build(diffusion.SOLVERS, solver, "solver").stochastic:
                cell["error"] = float(np.sqrt(np.mean((images - exact) ** 2)))
            cells.append(cell | {"call": solver})
            print(json.dumps(cells[-1]), flush=True)
    result = {
        "workdir": run.workdir.path.name,
        "checkpoint": run.step,
        "sample": run.config.sample.to_dict(),
        "grid": flags.grid,
        "count": flags.count,
        "reference": {
            "solver": REFERENCE[0],
            "steps": REFERENCE[1],
            "distance": run.distance(exact),
        },
        "real": run.judge.real(),
        "cells": cells,
        "provenance": provenance(),
    }
    out = Path(flags.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out.with_suffix(".json"), (json.dumps(result, indent=2) + "\n").encode())
    atomic_write(out.with_suffix(".md"), tables(result).encode())
    plot(result, out.with_suffix(".png"))
    print(tables(result))


class Run:
    """A run at its newest checkpoint, to be sampled in many ways."""

    def __init__(self, workdir: Workdir, grid: str, count: int):
        self.workdir, self.config = workdir, workdir.read_config()
        self.judge = Judge(self.config)
        self.real = features(self.judge.train)
        self.grid, self.count = grid, count
        self.task = tasks.make_task(self.config)
        self.params, self.step = checkpoints.restore_for_sampling(
            workdir.checkpoints, self.config.sample.ema, self.task.init, make_mesh()
        )

    def steps(self, solver: str, calls: int) -> int:
        """The most steps of a solver that make no more calls; 0: not even one."""
        rule = build(diffusion.SOLVERS, solver, "solver")
        make_grid = build(diffusion.GRIDS, self.grid, "--grid")
        for steps in range(calls, 0, -1):
            plan = rule.plan(make_grid(self.task.schedule, steps, "zero"), self.task.schedule)
            if len(plan.now.t) <= calls:
                return steps
        return 0

    def draw(self, solver: str, steps: int) -> tuple[np.ndarray, int]:
        """(samples in [-1, 1], rows of the plan: calls without those of guidance)."""
        config = ConfigDict(self.config.to_dict())
        config.sample.update(solver=solver, grid=self.grid, steps=steps, last_step="zero")
        sampler = build_sampler(freeze(config), self.task)
        size = min(self.count, config.sample.batch_size)
        out = []
        for start in range(0, self.count, size):
            indices = np.arange(start, start + size, dtype=np.int32)
            labels = sample_labels(config.sample.labels, self.task.num_classes, indices)
            pictures = sampler(self.params, jax.random.key(config.sample.seed), indices, labels)
            out.append(np.asarray(pictures))
        rows = len(sampler.plan(self.params).now.t)
        return np.concatenate(out)[: self.count], rows

    def distance(self, images: np.ndarray) -> float:
        """Of samples in [-1, 1] to the training images."""
        images = np.asarray(diffusion.to_uint8(images))
        return frechet_distance(features(images), self.real).distance


def tables(result: dict[str, Any]) -> str:
    """Markdown: a row a solver, a column a number of calls."""
    rows: dict[str, dict[int, dict]] = {}
    for cell in result["cells"]:
        rows.setdefault(cell["solver"], {})[cell["column"]] = cell
    lines = []
    for what, title in (("distance", "Distance to the data"), ("error", "Error against the ODE")):
        header = f"| {title}, calls | " + " | ".join(map(str, CALLS)) + " |"
        lines += [header, "| --- |" + " --- |" * len(CALLS)]
        for name, cells in rows.items():
            values = [f"{cells[c][what]:.3f}" if what in cells.get(c, ()) else "" for c in CALLS]
            if any(values):
                lines.append(f"| {name} | " + " | ".join(values) + " |")
        lines.append("")
    reference = result["reference"]
    lines.append(
        f"Distance of {reference['solver']} in {reference['steps']} steps: "
        f"{reference['distance']:.3f}; of {result['real']['count']} held-out real images: "
        f"{result['real']['distance']:.3f}."
    )
    return "\n".join(lines) + "\n"


def plot(result: dict[str, Any], path: Path) -> None:
    """Both numbers over the calls, a line a solver."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, what in zip(axes, ("distance", "error"), strict=True):
        for number, name in enumerate(SOLVERS):
            cells = [c for c in result["cells"] if c["solver"] == name and what in c]
            if cells:
                axis.plot(
                    [c["calls"] for c in cells],
                    [c[what] for c in cells],
                    marker="os^vD"[number % 5],
                    color=f"C{number % 10}",
                    linestyle="-" if number < 10 else "--",
                    label=name,
                )
        axis.set(xscale="log", yscale="log", xlabel="network calls", ylabel=what)
        axis.set_xticks(CALLS, [str(c) for c in CALLS])
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
    axes[0].axhline(result["real"]["distance"], color="black", linewidth=1, linestyle=":")
    axes[0].legend(fontsize=7, ncols=2)
    FigureCanvasAgg(figure).print_png(path)


if __name__ == "__main__":
    main(sys.argv[1:])
