"""A run of a network of one parameter, with real checkpoints, and features that cost nothing.

`python -m tests.evaluation.toy_run WORKDIR [COORDINATOR PROCESS COUNT]` evaluates one.
"""

import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np

import diffusion
from configs import base
from evaluation import extractors, job
from evaluation.extractors import Extractor
from models import Network
from training import checkpoints, tasks
from training.config import freeze
from training.state import TrainState
from training.workdir import Workdir

PROTOCOL = (
    "features(extractor='colours', metrics=(\"frechet(called='distance', output='embedding')\", "
    "\"precision_recall(output='embedding')\"))"
)


def _network(params, x, time, condition):
    return 0.6 * jnp.tanh(x) + params["shift"]


def make_task(config):
    """Of an unconditional model of 8 px grey images."""
    params = {"shift": np.float32(0.0)}
    return types.SimpleNamespace(
        init=lambda key: params,
        split=lambda params: (params, {}),
        network=Network(init=lambda key: params, apply=_network),
        schedule=diffusion.SCHEDULES["linear"](),
        parameterization=diffusion.PARAMETERIZATIONS["x0"](),
        learned_variance=False,
        image_shape=(8, 8, 1),
        num_classes=0,
        null=None,
    )


def colours(directory: str = "", bad: bool = False) -> Extractor:
    """Means of quarters of an image; not finite with `bad`."""

    def apply(params, images):
        quarters = images.astype(jnp.float32).reshape(-1, 2, 4, 2, 4).mean((2, 4)).reshape(-1, 4)
        return {"embedding": quarters * params / (0.0 if bad else 1.0)}

    return Extractor("colours", {"embedding": 4}, {"bad": bad}, np.float32(0.01), apply)


def install(monkeypatch=None) -> None:
    """Puts task and extractor into their registries."""
    for registry, name, value in (
        (tasks.TASKS, "diffusion", make_task),
        (extractors.EXTRACTORS, "colours", colours),
    ):
        if monkeypatch is None:
            registry[name] = value
        else:
            monkeypatch.setitem(registry, name, value)


def make_config(**evaluate):
    """Small; `evaluate` are fields of that section."""
    config = base.get_config()
    config.model.num_classes = 0
    config.train.steps = 20
    config.sample.update(solver="ddim(eta=0.0)", steps=3, batch_size=8)
    config.evaluate.update({"metrics": (PROTOCOL,), "count": 20, "batch_size": 8, **evaluate})
    config.evaluate.reference = evaluate.get("reference", "digits(split='test')")
    return config


def save(path, *steps) -> None:
    """Checkpoints whose parameter is the step / 100, and half of it the average."""
    store = checkpoints.Checkpoints(Workdir(path).checkpoints, keep=10)
    blank = dict.fromkeys(("rng", "window", "bad_steps", "bad_streak", "bad_since"), 0)
    for step in steps:
        state = TrainState(
            step=jnp.int32(step),
            params={"shift": jnp.float32(step / 100)},
            opt_state={"count": jnp.int32(step)},
            ema={"default": {"shift": jnp.float32(step / 200)}},
            task={},
            metrics={"loss": jnp.float32(0)},
            **{name: jnp.int32(value) for name, value in blank.items()},
        )
        store.save(step, state, {"batches": step})
    store.close()


def start(path, config, *steps):
    """A work directory with checkpoints."""
    Workdir(path).start(config, [])
    save(path, *steps)
    return path


def rows(path, name="features"):
    """Rows without what differs from start to start."""
    lines = (Workdir(path).evaluation / f"{name}.jsonl").read_text().splitlines()
    found = []
    for line in lines:
        row = json.loads(line)
        for part in (row, row.get("info", {})):
            for key in ("provenance", "seconds", "images_per_second", "made_by_this_start"):
                part.pop(key, None)
        found.append(row)
    return found


def main(path: str) -> None:
    """Evaluates two checkpoints of the run at `path` with two seeds."""
    install()
    job.evaluate(freeze(make_config(every_checkpoint=True, seeds=(0, 1))), path)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    if len(sys.argv) > 2:
        coordinator, process, count = sys.argv[2:]
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(coordinator, int(count), int(process))
    main(sys.argv[1])
