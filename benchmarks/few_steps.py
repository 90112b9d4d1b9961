"""Quality against network calls: a diffusion model's solvers and what is distilled from it.

    python -m benchmarks.few_steps --config=configs/digits_fewstep.py --root=runs/fewstep
    python -m benchmarks.few_steps --config=configs/shapes_fewstep.py --root=runs/shapes_fewstep

Trains whatever of <root> is not there yet, one run for each variant of the config, then samples
each at 1, 2, 4, 8 and 50 network calls an image and prints a table; <root>/table.json has every
number with how it was made. --methods=ddim,meanflow measures a part and adds it to the table.

The distance is Frechet's between Gaussians fitted to pixels in [-1, 1] of samples and of training
images: FID's formula without a network, good for small images of one make and nothing else. The
accuracy is that of `evaluation.class_accuracy`, where the config asks for it. Both are printed for
held-out real images too.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

import diffusion
from evaluation.class_accuracy import ClassAccuracy
from evaluation.metrics import frechet_distance
from training import checkpoints, command_line, components, tasks
from training.config import freeze
from training.mesh import make_mesh
from training.sampler import build_sampler, sample_labels
from training.workdir import Workdir, provenance

CALLS = (1, 2, 4, 8, 50)
FEW = (1, 2, 4, 8)
Pixels = np.ndarray


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the table: which run, and how it is sampled at a number of calls.

    Attributes:
        name: what the table says.
        run: its directory under the root; '{calls}' stands for the number of calls.
        variant: of the config that trains it.
        sample: fields of config.sample.
        calls: the columns that it has.
        steps: steps of the solver at so many calls.
    """

    name: str
    run: str
    variant: str
    sample: Mapping[str, Any]
    calls: tuple[int, ...] = FEW
    steps: Callable[[int], int] = lambda calls: calls


def _method(name: str, variant: str, solver: str, **more: Any) -> Method:
    fields = {"solver": solver, "grid": "uniform", "guidance": more.pop("guidance", ())}
    if solver == "flow_map()":
        fields["clip"] = "none"
    return Method(name, more.pop("run", variant or "teacher"), variant, fields, **more)


METHODS = {
    "ddim": _method("teacher, DDIM", "", "ddim(eta=0.0)", calls=CALLS),
    # 2 N - 1 calls; the columns get the largest odd number that they hold.
    "heun": _method(
        "teacher, Heun (one call less where even)",
        "",
        "heun(space='flow')",
        calls=(1, 4, 8, 50),
        steps=lambda calls: (calls + 1) // 2,
    ),
    "dpmpp_2m": _method("teacher, DPM-Solver++ 2M", "", "dpmpp_2m()", calls=CALLS),
    "progressive": _method(
        "progressive distillation", "progressive", "ddim(eta=0.0)", run="progressive{calls}"
    ),
    "consistency_distillation": _method(
        "consistency distillation", "consistency_distillation", "consistency()"
    ),
    "consistency": _method("consistency training", "consistency", "consistency()"),
    "scm_distillation": _method("sCM, distillation", "scm_distillation", "consistency()"),
    "scm": _method("sCM, training", "scm", "consistency()"),
    "meanflow": _method("MeanFlow", "meanflow", "flow_map()"),
    "shortcut": _method("shortcut", "shortcut", "flow_map()"),
    "guided": _method(
        "teacher, DDIM, guidance 2 (two calls a step)",
        "",
        "ddim(eta=0.0)",
        guidance=("classifier_free(scale=2.0)",),
        calls=CALLS[1:],
        steps=lambda calls: calls // 2,
    ),
    "guidance_distillation": _method(
        "guidance distillation, DDIM, told 2",
        "guidance_distillation",
        "ddim(eta=0.0)",
        guidance=("classifier_free(scale=2.0)",),
        calls=CALLS,
    ),
}


def main(arguments: list[str]) -> None:
    """Trains, samples, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/digits_fewstep.py")
    parser.add_argument("--root", default="runs/fewstep")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--count", type=int, default=1000, help="samples of each cell")
    flags = parser.parse_args(arguments)
    unknown = [name for name in flags.methods.split(",") if name not in METHODS]
    if unknown:
        parser.error(f"--methods: no {unknown[0]!r}; there are {', '.join(METHODS)}")
    chosen = [METHODS[name] for name in flags.methods.split(",")]
    root = Path(flags.root)
    train(flags.config, root, chosen)
    result = measure(root, chosen, flags.count)
    stored = root / "table.json"
    if stored.exists():
        result = joined(json.loads(stored.read_text()), result)
    stored.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))


def train(config: str, root: Path, methods: list[Method]) -> None:
    """Runs main.py for every work directory that is not finished; the teacher first."""
    start(config, root / "teacher")
    for method in methods:
        if method.variant == "progressive":
            teacher = root / "teacher"
            for steps in sorted(method.calls, reverse=True):
                student = root / method.run.format(calls=steps)
                task = f"progressive(teacher={str(teacher)!r}, steps={steps})"
                start(f"{config}:progressive", student, task, f"--config.sample.steps={steps}")
                teacher = student
        elif method.variant:
            task = command_line.read(f"{config}:{method.variant}").task
            task = taught_by(task, root / "teacher")
            start(f"{config}:{method.variant}", root / method.run, task)


def taught_by(task: str, teacher: Path) -> str:
    """A config's task with this teacher, if it has one at all."""
    name, given = components.parse(task)
    if "teacher" not in given:
        return task
    spelled = (f"{k}={v!r}" for k, v in (given | {"teacher": str(teacher)}).items())
    return f"{name}({', '.join(spelled)})"


def start(config: str, workdir: Path, task: str = "diffusion", *more: str) -> None:
    """`python main.py`, which ends at once where nothing is left to train."""
    command = [sys.executable, "main.py", f"--config={config}", f"--workdir={workdir}"]
    subprocess.run([*command, f"--config.task={task}", *more], check=True)


def measure(root: Path, methods: list[Method], count: int) -> dict[str, Any]:
    """Every cell: {'cells': [...], 'real': {...}}."""
    config = Workdir(root / "teacher").read_config()
    judge, made_by = Judge(config), provenance()
    made_by["code"] = {name: made_by["code"].get(name) for name in ("commit", "dirty")}
    cells = []
    for method in methods:
        for calls in method.calls:
            workdir = Workdir(root / method.run.format(calls=calls))
            sample = dict(method.sample) | {"steps": method.steps(calls)}
            images, labels, used, step = draw(workdir, sample, count)
            cell = {
                "method": method.name,
                "column": calls,
                "calls": used,
                "workdir": workdir.path.name,
                "checkpoint": step,
                "task": workdir.read_config().task,
                "sample": sample,
                "count": count,
                **judge(images, labels),
            }
            print(json.dumps(cell), flush=True)
            cells.append(cell | {"provenance": made_by})
    return {"real": judge.real(), "cells": cells}


def joined(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of both, the newer ones in place of the older, in the order of `METHODS`."""
    cells = {(cell["method"], cell["column"]): cell for cell in before["cells"] + now["cells"]}
    order = [method.name for method in METHODS.values()]
    listed = sorted(cells.values(), key=lambda cell: (order.index(cell["method"]), cell["column"]))
    return {**now, "cells": listed}


def draw(
    workdir: Workdir, sample: Mapping[str, Any], count: int
) -> tuple[Pixels, np.ndarray, int, int]:
    """(images uint8, labels, network calls an image, step of the checkpoint)."""
    config = ConfigDict(workdir.read_config().to_dict())
    config.sample.update(sample)
    config = freeze(config)
    task = tasks.make_task(config)
    sampler = build_sampler(config, task)
    params, step = checkpoints.restore_for_sampling(
        workdir.checkpoints, config.sample.ema, task.init, make_mesh()
    )
    size = min(count, config.sample.batch_size)
    images, labels = [], []
    for start_index in range(0, count, size):
        indices = np.arange(start_index, start_index + size, dtype=np.int32)
        labels.append(sample_labels("cycle", task.num_classes, indices))
        pictures = sampler(params, jax.random.key(config.sample.seed), indices, labels[-1])
        images.append(np.asarray(diffusion.to_uint8(pictures)))
    joined = np.concatenate(images)[:count], np.concatenate(labels)[:count]
    return *joined, sampler.calls_per_image, step


class Judge:
    """Distance to the training images, and accuracy where the config's metrics have it."""

    def __init__(self, config: Any):
        self.config = config
        asked = [name for name in config.evaluate.metrics if name.startswith("class_accuracy")]
        self.accuracy = ClassAccuracy() if asked else None
        self.train, _ = self._split("train")

    def _split(self, split: str) -> tuple[Pixels, np.ndarray]:
        accuracy = self.accuracy or ClassAccuracy()
        return accuracy._real(split, self.config)

    def __call__(self, images: Pixels, labels: np.ndarray) -> dict[str, float]:
        """The numbers of a cell."""
        values = {"distance": frechet_distance(features(images), features(self.train)).distance}
        if self.accuracy is not None:
            values["accuracy"] = self.accuracy(images, labels, self.config)["accuracy"]
        return values

    def real(self) -> dict[str, float]:
        """The numbers of held-out real images."""
        images, labels = self._split("test")
        return self(images, labels) | {"count": len(images)}


def features(images: Pixels) -> Float[np.ndarray, "count pixels"]:
    """Pixels in [-1, 1] as vectors."""
    return images.reshape(len(images), -1) / 127.5 - 1.0


def table(result: Mapping[str, Any]) -> str:
    """Markdown: a row a method, a column a number of calls; distance, and accuracy in brackets."""

    def spell(values: Mapping[str, float]) -> str:
        accuracy = f" ({values['accuracy']:.3f})" if "accuracy" in values else ""
        return f"{values['distance']:.2f}{accuracy}"

    rows: dict[str, dict[int, str]] = {}
    for cell in result["cells"]:
        rows.setdefault(cell["method"], {})[cell["column"]] = spell(cell)
    lines = ["| calls | " + " | ".join(map(str, CALLS)) + " |", "| --- |" + " --- |" * len(CALLS)]
    for name, cells in rows.items():
        lines.append(f"| {name} | " + " | ".join(cells.get(c, "") for c in CALLS) + " |")
    return "\n".join([*lines, "", f"held-out real images: {spell(result['real'])}"])


if __name__ == "__main__":
    main(sys.argv[1:])
