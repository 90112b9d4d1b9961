"""Trains the stages of a stack: `python main.py --mode=train --config=configs/unclip_shapes.py`.

    <workdir>/config.json  run.json  <stage>/...  generated/  evaluation/

Stages are trained in order, each in a work directory of its own; what is done is left, what is half
done goes on. After CLIP its embeddings are written for the others (config.embeddings = 'records').
"""

import os
import sys
from typing import Any

import jax
from ml_collections import ConfigDict

from pipelines import embed, quantize
from training import checkpoints, components, loop, stack
from training.components import ConfigError
from training.config import check_resumable, freeze
from training.workdir import Workdir


def train(config: Any, directory: str | os.PathLike[str]) -> None:
    """Trains the stages of `config.only` that are not finished.

    Raises:
        ConfigError: before anything is trained or written, where the directory holds another run,
            a stage is already there with another config, or one that is needed is neither there nor
            among those to train.
    """
    stages, chosen = stack.stages(config, directory), stack.only(config)
    clip = stack.clip_of(config)
    _check_root(Workdir(directory), stages)
    for name in stages:
        _check_same(name, Workdir(stack.directory(directory, name)), stages[name])
    told = [name for name in chosen if stack.task_of(stages[name]).name in stack.EMBEDDED]
    there = clip in chosen or finished(Workdir(stack.directory(directory, clip)), stages[clip])
    if told and not there:
        raise ConfigError(
            f"config.only = {config.only!r}: the stage {clip!r} is not trained yet, and "
            f"{told[0]!r} learns from it; train it first (--config.only={clip}), or all "
            "(--config.only=)"
        )
    Workdir(directory).start(config, sys.argv)
    for number, name in enumerate(chosen, start=1):
        workdir = Workdir(stack.directory(directory, name))
        title = f"stage {number} of {len(chosen)}: {name} ({os.fspath(workdir)})"
        if finished(workdir, stages[name]):
            _tell(f"{title}: done already")
        else:
            _tell(title)
            _train(stages[name], workdir)
        if name == clip and config.embeddings == "records":
            _embed(config, stages, workdir)


def finished(workdir: Workdir, stage: ConfigDict) -> bool:
    """Whether a stage has its last checkpoint."""
    steps = checkpoints.steps(workdir.checkpoints)
    return bool(steps) and steps[-1] >= stage.train.steps


def _check_root(workdir: Workdir, stages: dict[str, ConfigDict]) -> None:
    """Refuses a directory whose record would be lost: a single run's, or that of other stages."""
    if not workdir.config.exists():
        return
    there = workdir.read_config()
    if not stack.is_stack(there):
        raise ConfigError(
            f"{os.fspath(workdir)}: holds a run of task {there.task!r}, and this is a stack; take "
            "another --workdir"
        )
    lost = [
        name
        for name in there.order
        if name not in stages and Workdir(stack.directory(workdir.path, name)).config.exists()
    ]
    if lost:
        raise ConfigError(
            f"{os.fspath(workdir)}: holds stages that this config has not: {', '.join(lost)}; take "
            "the config that has them, or another --workdir"
        )


def _check_same(name: str, workdir: Workdir, stage: ConfigDict) -> None:
    if not workdir.config.exists():
        return
    try:
        check_resumable(workdir.read_config(), stage)
    except ConfigError as error:
        message = stack.in_stage(name, str(error))
        raise ConfigError(f"{os.fspath(workdir)}: {message}") from None


def _train(stage: ConfigDict, workdir: Workdir) -> None:
    call = stack.task_of(stage)
    if call.name == "autoregressive_prior" and not workdir.path.joinpath(quantize.FILE).exists():
        quantize.quantize(freeze(stage), workdir)
    loop.train(freeze(stage), os.fspath(workdir))
    # Its programs are of no more use; the next stage's need the room.
    jax.clear_caches()


def _embed(config: ConfigDict, stages: dict[str, ConfigDict], workdir: Workdir) -> None:
    """Writes the records that later stages read, where they are not there."""
    clip = stages[stack.clip_of(config)]
    for split in config.splits:
        source = components.changed(stack.pairs_of(config), split=split)
        clip.embed.update(split=split, source=source)
        _tell(f"embeddings of the split {split!r}")
        embed.embed(freeze(clip), workdir)


def _tell(text: str) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)
