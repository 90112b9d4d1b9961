"""What may be done with a config: check it, freeze it, store it, compare it. Needs no JAX."""

import difflib
import fnmatch
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict, FrozenConfigDict

from configs import base, networks, stack
from training import conditions, init_plan, posthoc
from training.components import ConfigError, nearest
from training.files import atomic_write
from training.root import above, fill

# A ConfigDict, frozen or not, is no Mapping.
Section = Mapping | ConfigDict
# Fields that a resumed run may change: nothing that was computed before depends on them.
RESUMABLE = (
    "train.steps",
    "train.stall_seconds",
    "log.*",
    "checkpoint.*",
    "sample.*",
    "convert.*",
    "embed.*",
    "evaluate.*",
    "likelihood.*",
    "profile",
    "data.workers",
    "data.prefetch",
    "mesh.*",
)
# Courses of the learning rate that end at train.steps.
_ENDING_DECAYS = ("cosine", "linear")


def flatten(config: Section, prefix: str = "") -> dict[str, Any]:
    """Values by dotted path: `{"train.steps": 5, ...}`."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, Section):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def no_field(field: str, known: Collection[str]) -> str:
    """What is wrong with a dotted path that is not in `known`, and what was likely meant."""
    close = difflib.get_close_matches(field, known, 1)
    if close:
        return f"no such field; did you mean config.{close[0]}?"
    section = field.rpartition(".")[0]
    beside = [name for name in known if name.rpartition(".")[0] == section] if section else []
    names = beside or sorted({name.split(".")[0] for name in known})
    return "no such field; there are " + ", ".join(f"config.{name}" for name in names)


def load(source: epath.PathLike | Mapping) -> ConfigDict:
    """Reads a stored config, of a run or of a stack of them, on top of the defaults.

    Args:
        source: a path of a JSON file that `save` wrote, or its content as a dict. What it lacks
            (it is of an older version) keeps its default. In the file of a run '{root}' stands for
            the directory above its work directory.

    Raises:
        ConfigError: no such file, not JSON, or fields that this version does not have.
    """
    where = "config"
    if not isinstance(source, Mapping):
        where = str(source)
        try:
            source = json.loads(epath.Path(source).read_text())
        except FileNotFoundError:
            raise ConfigError(f"{where}: no such file") from None
        except json.JSONDecodeError as error:
            raise ConfigError(f"{where} is not JSON: {error}") from None
        if not isinstance(source, dict):
            raise ConfigError(f"{where} holds no config, but a {type(source).__name__}")
        if "stages" not in source:
            source = fill(source, above(where))
    stored = _tuples(source)
    config = _defaults(stored)
    known = flatten(config)
    unknown = [field for field in flatten(stored) if field not in known]
    if unknown:
        raise ConfigError(
            "\n".join(f"{where}: config.{field}: {no_field(field, known)}" for field in unknown)
        )
    try:
        config.update(stored)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None
    return config


def save(config: ConfigDict, path: epath.PathLike) -> None:
    """Writes a config as JSON, in one go: a reader sees the old file or the new one."""
    atomic_write(path, (json.dumps(config.to_dict(), indent=2) + "\n").encode())


def freeze(config: ConfigDict) -> FrozenConfigDict:
    """The config that a run is given: no field can change, whole floats are floats."""
    return FrozenConfigDict(load(config.to_dict()))


def differences(old: ConfigDict, new: ConfigDict) -> list[tuple[str, Any, Any]]:
    """Fields that differ, as (dotted path, old value, new value); None where one lacks it."""
    old, new = flatten(old.to_dict()), flatten(new.to_dict())
    return [
        (field, old.get(field), new.get(field))
        for field in sorted(old | new)
        if old.get(field) != new.get(field)
    ]


def check_resumable(old: ConfigDict, new: ConfigDict) -> None:
    """Refuses to continue a run of config `old` under config `new` where results would differ.

    A changed train.steps is refused where the learning rate decays towards it: the steps already
    taken would have had other learning rates.

    Raises:
        ConfigError: the fields with both values; or `old` is of a stack.
    """
    if "stages" in old:
        raise ConfigError(
            f"this work directory holds a stack of {', '.join(old.order)}; take another --workdir"
        )
    changed = differences(old, new)
    fixed = [
        change
        for change in changed
        if not any(fnmatch.fnmatchcase(change[0], pattern) for pattern in RESUMABLE)
    ]
    lines = [f"config.{field}: {before!r} -> {after!r}" for field, before, after in fixed]
    decay = new.optimizer.decay
    if decay in _ENDING_DECAYS and old.train.steps != new.train.steps:
        lines.append(
            f"config.train.steps: {old.train.steps} -> {new.train.steps} (it may change only "
            f"without decay; config.optimizer.decay = {decay!r} ends at train.steps)"
        )
    if lines:
        raise ConfigError(
            "this work directory holds a run of another config:\n  "
            + "\n  ".join(lines)
            + "\ntake the old values to resume it, or another --workdir to start anew"
        )


def validate(config: ConfigDict) -> None:
    """Checks all that can be seen without data, JAX or compilation.

    Components (strings that read like calls) are checked by `training.components.check`, and the
    fields of the network by itself, when it is built.

    Raises:
        ConfigError: one line for each mistake: field, value, what it must be.
    """
    for check in (_check_names, _check_types, _check_values, _check_together):
        mistakes = [f"config.{mistake}" for mistake in check(config)]
        if mistakes:
            raise ConfigError("\n".join(mistakes))


def _tuples(value: Any) -> Any:
    """Turns lists into tuples: JSON has no tuples, configs have no lists."""
    if isinstance(value, Mapping):
        return {name: _tuples(v) for name, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


def _defaults(given: Section) -> ConfigDict:
    """`configs.base` or, with stages, `configs.stack`; sections that depend on the config fitted.

    The names under ema are the config's own. The fields of model are those of the network; where
    `networks` has none of its name they are taken as given, and the network itself checks them.
    """
    if isinstance(given.get("stages"), Section):
        names = given["stages"]
        return stack.get_config(**{name: _defaults(names[name]) for name in names})
    config = base.get_config()
    if isinstance(given.get("ema"), Section):
        config.ema = ConfigDict(dict(given["ema"]))
    model = given.get("model")
    if isinstance(model, Section):
        fields = networks.FIELDS.get(model.get("name", config.model.name))
        config.model = fields() if fields else ConfigDict(dict(model))
    return config


def _check_names(config: ConfigDict) -> Iterator[str]:
    expected, given = flatten(_defaults(config)), flatten(config)
    unknown = [field for field in given if field not in expected]
    for field in unknown:
        yield f"{field}: {no_field(field, expected)}"
    for field in expected:
        if field not in given and not unknown:
            yield f"{field} is missing; its default is {expected[field]!r}"


TYPES = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a string",
    tuple: "a tuple",
}


def _check_types(config: ConfigDict) -> Iterator[str]:
    given = flatten(config)
    for field, default in flatten(_defaults(config)).items():
        value, kind = given[field], type(default)
        if type(value) is not kind and not (kind is float and type(value) is int):
            yield f"{field} = {value!r}: must be {TYPES[kind]}"
    for field in (
        "data.augmentations",
        "convert.fields",
        "evaluate.metrics",
        "sample.guidance",
        "init.rules",
        "init.fresh",
        "init.pad",
    ):
        value = given[field]
        if isinstance(value, tuple) and any(not isinstance(item, str) for item in value):
            yield f"{field} = {value!r}: must be a tuple of strings"


# What a value may be: a test, and the words for it.
Rule = tuple[Callable[[Any], bool], str]


def _at_least(low: float) -> Rule:
    return lambda value: low <= value < math.inf, f"{low} or more"


def _one_of(*options) -> Rule:
    return lambda value: value in options, " or ".join(repr(option) for option in options)


RULES: dict[str, Rule] = {
    "seed": (lambda value: 0 <= value < 2**32, "from 0 to 2**32 - 1"),
    "data.image_size": _at_least(1),
    "data.channels": _at_least(1),
    "data.scale": (lambda value: 0 < value < math.inf, "above 0"),
    "data.context": _at_least(2),
    "data.workers": _at_least(0),
    "data.prefetch": _at_least(1),
    "data.on_bad_image": _one_of("raise", "skip"),
    "diffusion.loss": _one_of("simple", "hybrid", "vlb", "vdm"),
    "diffusion.variance": _one_of("fixed", "learned_range"),
    "diffusion.uncertainty_channels": _at_least(0),
    "diffusion.label_dropout": (lambda value: 0 <= value <= 1, "a probability, from 0 to 1"),
    "init.checkpoint": (lambda value: value >= -1, "-1 (the newest) or a step"),
    "train.steps": _at_least(0),
    "train.batch_size": _at_least(1),
    "train.accumulate": _at_least(1),
    "train.max_bad_steps": _at_least(1),
    "optimizer.learning_rate": _at_least(0),
    "optimizer.warmup_steps": _at_least(0),
    "optimizer.decay": _one_of("constant", *_ENDING_DECAYS, "inverse_sqrt"),
    "optimizer.decay_steps": _at_least(0),
    "optimizer.clip_norm": _at_least(0),
    "optimizer.sam_rho": _at_least(0),
    **{
        f"mesh.{axis}": (lambda value: value == -1 or value >= 1, "-1 (the rest) or 1 or more")
        for axis in ("data", "fsdp", "tensor")
    },
    "checkpoint.every": _at_least(1),
    "checkpoint.keep": _at_least(1),
    "checkpoint.keep_every": _at_least(0),
    "log.every": _at_least(1),
    "log.preview_every": _at_least(0),
    "log.preview_count": _at_least(1),
    "log.peak_flops": _at_least(0),
    "profile": _at_least(0),
    "sample.steps": _at_least(1),
    "sample.eps_after_clip": _one_of("rederive", "raw"),
    "sample.last_step": _one_of("zero", "sigma_min", "mean"),
    "sample.count": _at_least(1),
    "sample.batch_size": _at_least(1),
    "sample.seed": (lambda value: 0 <= value < 2**32, "from 0 to 2**32 - 1"),
    "sample.checkpoint": (lambda value: value >= -1, "-1 (the newest) or a step"),
    "convert.split": (str.isidentifier, "a plain name like 'train'"),
    "convert.shards": _at_least(0),
    "embed.split": (str.isidentifier, "a plain name like 'train'"),
    "embed.image_size": _at_least(0),
    "embed.statistics": _at_least(1),
    "likelihood.split": (bool, "the name of a split like 'test'"),
    "likelihood.count": _at_least(0),
    "likelihood.batch_size": _at_least(1),
    "likelihood.seed": (lambda value: 0 <= value < 2**32, "from 0 to 2**32 - 1"),
    "likelihood.checkpoint": (lambda value: value >= -1, "-1 (the newest) or a step"),
}


def _check_values(config: ConfigDict) -> Iterator[str]:
    given = flatten(config)
    for field, (fits, allowed) in RULES.items():
        if not fits(given[field]):
            yield f"{field} = {given[field]!r}: must be {allowed}"


def _check_together(config: ConfigDict) -> Iterator[str]:
    """Fields that must fit each other."""
    model, train = config.model, config.train
    if config.data.field == "image" and config.data.channels not in (1, 3):
        yield f"data.channels = {config.data.channels}: must be 1 or 3 for images"
    if config.data.field != "image":
        for field in ("augmentations", "device_augmentation"):
            if config.data[field]:
                yield f"data.{field} = {config.data[field]!r}: is for images only; leave it empty"
    if config.optimizer.forced_weight_norm and model.name != "edm2_unet":
        yield (
            "optimizer.forced_weight_norm = True: must be False with config.model.name = "
            f"{model.name!r}; it is for networks that normalize their kernels, 'edm2_unet'"
        )
    if train.batch_size % train.accumulate:
        yield (
            f"train.batch_size = {train.batch_size}: must be a multiple of "
            f"config.train.accumulate = {train.accumulate}"
        )
    yield from conditions.check(config)
    loss, variance = config.diffusion.loss, config.diffusion.variance
    learns_variance = loss in ("hybrid", "vlb")
    if not learns_variance and variance != "fixed":
        yield (
            f"diffusion.loss = {loss!r}: must be 'hybrid' or 'vlb' to train the variance of "
            f"config.diffusion.variance = {variance!r}"
        )
    if learns_variance and variance == "fixed":
        yield f"diffusion.loss = {loss!r}: needs config.diffusion.variance='learned_range'"
    for name in config.ema:
        if not name.isidentifier() or name == "params":
            yield f"ema.{name}: must be a plain name other than 'params', which is the raw ones'"
        elif not isinstance(config.ema[name], str):
            yield f"ema.{name} = {config.ema[name]!r}: must be a string like 'constant(decay=0.9)'"
    yield from init_plan.check(config.init, base.get_config().init)
    yield from _check_optimizer(config.optimizer)
    yield from _check_average("sample.ema", config.sample.ema, config.ema)
    if config.likelihood.ema:
        yield from _check_average("likelihood.ema", config.likelihood.ema, config.ema)
    if sum(size == -1 for size in config.mesh.values()) > 1:
        yield f"mesh = {dict(config.mesh)}: -1 (the rest) can stand at one axis only"
    every, keep_every = config.checkpoint.every, config.checkpoint.keep_every
    if keep_every % every:
        yield (
            f"checkpoint.keep_every = {keep_every}: must be a multiple of "
            f"config.checkpoint.every = {every}"
        )


def _check_average(field: str, name: str, averages: Section) -> Iterator[str]:
    """The name of one set of parameters."""
    if posthoc.is_posthoc(name):
        try:
            posthoc.width(name)
            if all(isinstance(averages[tracked], str) for tracked in averages):
                posthoc.tracked(averages, name)
        except ConfigError as error:
            yield str(error).replace("config.sample.ema", f"config.{field}").removeprefix("config.")
    elif name != "params" and name not in averages:
        yield f"{field} = {name!r}: {nearest(name, [*averages, 'params', 'posthoc(std=...)'])}"


def _check_optimizer(optimizer: Section) -> Iterator[str]:
    """Fields of the optimizer that must fit each other."""
    decay, decay_steps = optimizer.decay, optimizer.decay_steps
    if decay == "inverse_sqrt" and not decay_steps:
        yield (
            "optimizer.decay_steps = 0: must be 1 or more with config.optimizer.decay = "
            "'inverse_sqrt', which falls from that step on"
        )
    if decay != "inverse_sqrt" and decay_steps:
        yield (
            f"optimizer.decay_steps = {decay_steps}: must be 0 with config.optimizer.decay = "
            f"{decay!r}; it is of 'inverse_sqrt'"
        )
    if optimizer.name.startswith("schedule_free"):
        if decay != "constant":
            yield (
                f"optimizer.decay = {decay!r}: must be 'constant' with config.optimizer.name = "
                f"{optimizer.name!r}, whose average is its decay (warmup_steps stays in force)"
            )
        if optimizer.forced_weight_norm:
            yield (
                "optimizer.forced_weight_norm = True: must be False with config.optimizer.name = "
                f"{optimizer.name!r}, which trains at a mean of two points"
            )
