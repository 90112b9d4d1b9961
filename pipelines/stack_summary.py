"""What the stages of a stack are, before anything is made: `--mode=inspect` of a stack.

python main.py --mode=inspect --config=configs/unclip_paper.py --workdir=runs/paper

<workdir>/stages.md
"""

import functools
import os
from typing import Any

import jax
import numpy as np

import models
from training import optimizer, stack, tasks
from training.config import freeze
from training.files import atomic_write
from training.state import initial_state
from training.workdir import Workdir


def inspect(config: Any, directory: str | os.PathLike[str]) -> None:
    """Print and write a row for each stage; networks are traced, and no array is allocated.

    Raises:
        ConfigError: a stage cannot be built.
    """
    stages = stack.stages(config, directory)
    text = table({name: summarize(stage) for name, stage in stages.items()})
    if jax.process_index() == 0:
        path = Workdir(directory).path / "stages.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, text.encode())
        print(text, end="")
        print(os.fspath(path), flush=True)


def summarize(stage: Any) -> dict[str, Any]:
    """Numbers of a stage: network, parameters, bytes of what is trained, steps and batch.

    'state' are the bytes of parameters, of the optimizer's state and of all averages, on all
    devices together. Gradients and activations, and a frozen CLIP, come on top.
    """
    task = tasks.make_task(freeze(stage))
    rate = optimizer.learning_rate(stage.optimizer, stage.train.steps)
    transform = optimizer.make_optimizer(stage.optimizer, rate)
    init = functools.partial(initial_state, task, transform, tuple(stage.ema), (), stage.seed)
    made = jax.eval_shape(init)
    leaves = jax.tree.leaves((made.params, made.opt_state, made.ema))
    return {
        "network": stage.model.name,
        "parameters": models.count_parameters(made.params),
        "state": sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves),
        "steps": stage.train.steps,
        "batch": stage.train.batch_size,
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown, a line a stage."""
    lines = ["| stage | network | parameters | state | steps | batch |", "|" + " --- |" * 6]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['network']} | {row['parameters']:,} | {_bytes(row['state'])} | "
            f"{row['steps']:,} | {row['batch']:,} |"
        )
    return "\n".join(lines) + "\n"


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
