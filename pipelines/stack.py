"""Trains the stages of a stack: `python main.py --mode=train --config=configs/unclip_shapes.py`.

    <workdir>/config.json  run.json  <stage>/...  generated/  evaluation/

Stages are trained in order, each in a work directory of its own; what is done is left, what is half
done goes on. After CLIP its embeddings are written for the others (config.embeddings = 'records').
Where there are several processes, the first one decides what is done.
"""

import os
import sys
from typing import Any

import jax
from ml_collections import ConfigDict

import input_pipeline
from pipelines import embed, quantize
from training import checkpoints, components, loop, processes, stack, tasks
from training.components import ConfigError
from training.config import check_resumable, freeze
from training.exit_codes import Preempted
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
    told = [name for name in chosen if stack.task_of(stages[name]).name in stack.EMBEDDED]
    recorded = config.embeddings == "records" and bool(told or clip in chosen)
    if recorded:
        embed.check_directory(directory)
        _check_splits(config)
    _check_root(Workdir(directory), stages)
    for name in stages:
        _check_same(name, Workdir(stack.directory(directory, name)), stages[name])
    for name in chosen:
        _check_task(name, stages[name])
    there = clip in chosen or _done(directory, stages, clip)
    if told and not there:
        raise ConfigError(
            f"config.only = {config.only!r}: the stage {clip!r} is not trained yet, and "
            f"{told[0]!r} learns from it; train it first (--config.only={clip}), or all "
            "(--config.only=)"
        )
    Workdir(directory).start(config, sys.argv)
    if recorded and clip not in chosen:
        _embed(config, stages, Workdir(stack.directory(directory, clip)))
    for number, name in enumerate(chosen, start=1):
        workdir = Workdir(stack.directory(directory, name))
        title = f"stage {number} of {len(chosen)}: {name} ({os.fspath(workdir)})"
        if _done(directory, stages, name):
            _tell(f"{title}: done already")
        else:
            _tell(title)
            left = number < len(chosen) or (recorded and name == clip)
            if _train(stages[name], workdir) and left:
                raise Preempted(
                    f"stopped by a signal after the stage {name!r}, which is done; start the same "
                    "command again to go on"
                )
        if recorded and name == clip:
            _embed(config, stages, workdir)


def finished(workdir: Workdir, stage: ConfigDict) -> bool:
    """Whether a stage has its last checkpoint."""
    steps = checkpoints.steps(workdir.checkpoints)
    return bool(steps) and steps[-1] >= stage.train.steps


def _done(root: str | os.PathLike[str], stages: dict[str, ConfigDict], name: str) -> bool:
    """Whether process 0 finds a stage finished: file systems do not show all hosts the same."""
    workdir = Workdir(stack.directory(root, name))
    return processes.on_first(lambda: finished(workdir, stages[name]))


def _check_splits(config: ConfigDict) -> None:
    """Refuses pairs that cannot be embedded: otherwise said after all of CLIP's training."""
    for split in config.splits:
        source = components.changed(stack.pairs_of(config), split=split)
        field = f"config.splits: {_pairs_field(config)}"
        components.build(input_pipeline.SOURCES, source, field)


def _pairs_field(config: ConfigDict) -> str:
    return "config.pairs" if config.pairs else f"config.stages.{stack.clip_of(config)}.data.source"


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


def _check_task(name: str, stage: ConfigDict) -> None:
    """Refuses what a task or its network does not do: otherwise said when the stage begins."""
    try:
        tasks.make_task(freeze(stage))
    except ConfigError as error:
        raise ConfigError(stack.in_stage(name, str(error))) from None


def _train(stage: ConfigDict, workdir: Workdir) -> bool:
    """As `loop.train`."""
    quantizer = workdir.path / quantize.FILE
    if stack.task_of(stage).name == "autoregressive_prior" and not processes.on_first(
        quantizer.exists
    ):
        quantize.quantize(freeze(stage), workdir)
    told = loop.train(freeze(stage), os.fspath(workdir))
    # Its programs are of no more use; the next stage's need the room.
    jax.clear_caches()
    return told


def _embed(config: ConfigDict, stages: dict[str, ConfigDict], workdir: Workdir) -> None:
    """Writes the records that later stages read, where they are not there."""
    clip = stages[stack.clip_of(config)]
    for split in config.splits:
        source = components.changed(stack.pairs_of(config), split=split)
        clip.embed.update(split=split, source=source)
        _tell(f"embeddings of the split {split!r}")
        try:
            embed.embed(freeze(clip), workdir)
        except ConfigError as error:
            message = str(error).replace("config.embed.source", _pairs_field(config))
            raise ConfigError(message) from None


def _tell(text: str) -> None:
    if processes.first():
        print(text, file=sys.stderr, flush=True)
