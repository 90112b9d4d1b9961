"""A stack of stages as one experiment: its config checked, and the config of each stage."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from training import components
from training.components import Call, ConfigError, changed, nearest
from training.config import TYPES, flatten, load, no_field, validate
from training.root import ROOT, absolute, fill

# Tasks that read CLIP's embeddings, and so get `clip=` or its records.
PRIORS = ("prior", "autoregressive_prior", "regression_prior")
EMBEDDED = (*PRIORS, "decoder")
# Names beside the stages in the work directory.
_TAKEN = ("generated", "evaluation", "report")


def is_stack(config: Mapping | ConfigDict) -> bool:
    """Whether a config has stages."""
    return "stages" in config


def validate_stack(config: ConfigDict) -> None:
    """Checks a stack and each of its stages, as `training.config.validate`.

    Raises:
        ConfigError: one line for each mistake: field, value, what it must be.
    """
    mistakes = [f"config.{mistake}" for mistake in _mistakes(config)]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    for name in config.order:
        try:
            validate(config.stages[name])
        except ConfigError as error:
            raise ConfigError(in_stage(name, str(error))) from None


def check_stack(config: ConfigDict) -> None:
    """Checks the components of each stage, as `training.components.check`."""
    for name in config.order:
        try:
            components.check(config.stages[name])
        except ConfigError as error:
            raise ConfigError(in_stage(name, str(error))) from None


def in_stage(name: str, message: str) -> str:
    """A message about the config of a stage as one about the config of the stack."""
    return re.sub(r"\bconfig\.(?!json\b)", f"config.stages.{name}.", message)


def _mistakes(config: ConfigDict) -> Iterator[str]:
    defaults = load({"stages": {}, "order": ()})
    own = flatten({name: value for name, value in config.items() if name != "stages"})
    known = flatten({name: value for name, value in defaults.items() if name != "stages"})
    for field in own.keys() - known.keys():
        yield f"{field}: {no_field(field, known)}"
    for field, default in known.items():
        if field not in own:
            yield f"{field} is missing; its default is {default!r}"
        elif type(own[field]) is not type(default):
            yield f"{field} = {own[field]!r}: must be {TYPES[type(default)]}"
        elif isinstance(default, tuple) and any(not isinstance(item, str) for item in own[field]):
            yield f"{field} = {own[field]!r}: must be a tuple of strings"
    if own.keys() == known.keys():
        yield from _unfit(config)


def _unfit(config: ConfigDict) -> Iterator[str]:
    """Values that are not allowed, or do not fit each other."""
    stages, generate = set(config.stages), config.generate
    if set(config.order) != stages or len(config.order) != len(stages):
        yield f"order = {config.order}: must name each of config.stages once, {sorted(stages)}"
    for name in stages:
        if not name.isidentifier() or name in _TAKEN:
            yield f"stages.{name}: must be a plain name, and none of {', '.join(_TAKEN)}"
    if config.embeddings not in ("records", "step"):
        yield f"embeddings = {config.embeddings!r}: must be 'records' or 'step'"
    wanted = [("only", name) for name in only(config)]
    wanted += [("generate.prior", generate.prior)] if generate.prior else []
    wanted += [("generate.decoder", generate.decoder)]
    wanted += [("generate.upsamplers", name) for name in generate.upsamplers]
    for field, name in wanted:
        if name not in stages:
            yield f"{field}: there is no stage {name!r}; {nearest(name, stages)}"
    clips = [name for name in stages if task_of(config.stages[name]).name == "clip"]
    if len(clips) != 1:
        yield f"stages: one of them must be of task 'clip', here are {len(clips)}"
    elif config.embeddings == "records":
        yield from _unwritten(config, clips[0])
    for field in ("count", "batch_size"):
        if generate[field] < 1:
            yield f"generate.{field} = {generate[field]}: must be 1 or more"
    if not 0 <= generate.seed < 2**32:
        yield f"generate.seed = {generate.seed}: must be from 0 to 2**32 - 1"
    for prompt in generate.prompts:
        if not prompt.strip():
            yield "generate.prompts: a prompt is empty; say what is to be seen"


def _unwritten(config: ConfigDict, clip: str) -> Iterator[str]:
    """What a stage reads and records would lack: otherwise said after all of CLIP's training."""
    if config.stages[clip].embed.text_features:
        return
    for name, stage in config.stages.items():
        if task_of(stage).name in EMBEDDED and stage.model.get("text_dim", 0):
            yield (
                f"stages.{clip}.embed.text_features = False: {name!r} reads the features of each "
                "token (its model.text_dim); set it to True, or embeddings to 'step'"
            )


def only(config: ConfigDict) -> list[str]:
    """The stages that are to be trained, in order."""
    chosen = [name.strip() for name in config.only.split(",") if name.strip()]
    known = [name for name in config.order if name in chosen]
    return known + [name for name in chosen if name not in known] or list(config.order)


def task_of(stage: Mapping | ConfigDict) -> Call:
    """The task of a stage, as its config names it."""
    return components.parse(stage["task"])


def clip_of(config: ConfigDict) -> str:
    """Name of the stage that is CLIP."""
    return next(name for name in config.order if task_of(config.stages[name]).name == "clip")


def pairs_of(config: ConfigDict) -> str:
    """The source of the images and captions whose embeddings are learned from."""
    return config.pairs or config.stages[clip_of(config)].data.source


def directory(root: str | os.PathLike[str], name: str) -> epath.Path:
    """The work directory of a stage."""
    return epath.Path(root) / name


def stages(config: ConfigDict, root: str | os.PathLike[str]) -> dict[str, ConfigDict]:
    """The config of every stage in order, with '{root}' and the source of embeddings filled in."""
    clip = clip_of(config)
    made = {}
    for name in config.order:
        fields = config.stages[name].to_dict()
        if task_of(fields).name in EMBEDDED:
            _embed(fields, config, clip)
        made[name] = load(fill(fields, absolute(root)))
    return made


def _embed(fields: dict[str, Any], config: ConfigDict, clip: str) -> None:
    """Says in a stage where CLIP's embeddings come from."""
    data, source = fields["data"], config.stages[clip].data
    if config.embeddings == "records":
        data["source"] = f"records(path='{ROOT}/{clip}/embeddings', split={config.splits[0]!r})"
    else:
        fields["task"] = changed(fields["task"], clip=f"{ROOT}/{clip}")
        data["source"] = pairs_of(config)
        data["tokenizer"] = f"file(path='{ROOT}/{clip}/tokenizer.json')"
    data.update(image_size=source.image_size, channels=source.channels, context=source.context)
