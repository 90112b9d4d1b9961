"""Components named by strings: `build(SCHEDULES, 'cosine(timesteps=4000)', field)`.

A registry is a plain dict of functions (or classes). The string is parsed, never evaluated: it is a
name, or a call of it with keyword arguments that are literals, or calls of the same registry:
`'zero_terminal_snr(schedule=linear(timesteps=1000))'`.
"""

import ast
import difflib
import functools
import importlib
import inspect
import operator
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

# Fields that are just a name, and the registry that has it.
NAMES = {"model.name": "models:MODELS"}
# Fields that name a component as a call, or a tuple of them. Metrics are checked by the evaluation,
# which training does not know.
CALLS = {
    "task": "training.tasks:TASKS",
    "data.source": "input_pipeline:SOURCES",
    "data.augmentations": "input_pipeline:AUGMENTATIONS",
    "data.device_augmentation": "input_pipeline:DEVICE_AUGMENTATIONS",
    "data.tokenizer": "input_pipeline:TOKENIZERS",
    "diffusion.schedule": "diffusion:SCHEDULES",
    "diffusion.parameterization": "diffusion:PARAMETERIZATIONS",
    "diffusion.weighting": "diffusion:WEIGHTINGS",
    "diffusion.time_sampler": "diffusion:TIME_SAMPLERS",
    "optimizer.name": "training.optimizer:OPTIMIZERS",
    "sample.solver": "diffusion:SOLVERS",
    "sample.grid": "diffusion:GRIDS",
    "sample.clip": "diffusion:CLIPS",
    "sample.guidance": "diffusion:GUIDANCES",
    "likelihood.method": "diffusion:LIKELIHOOD_METHODS",
    "embed.source": "input_pipeline:SOURCES",
    "likelihood.source": "input_pipeline:SOURCES",
}
# Types of literals.
PLAIN = (bool, int, float, str, tuple)


class ConfigError(ValueError):
    """A mistake in a config or on the command line; the message is all that its author needs."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A half sentence that lists what is allowed, the likeliest meant first."""
    allowed = sorted(allowed)
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return hint + ("allowed: " + ", ".join(allowed) if allowed else "none is allowed")


class Call(NamedTuple):
    """A component as a string names it; arguments are literals, calls and tuples of calls."""

    name: str
    arguments: dict[str, Any]


def parse(string: str) -> Call:
    """Reads `"ddpm(variance='fixed_large')"` as `Call("ddpm", {"variance": "fixed_large"})`.

    Raises:
        ConfigError: the string is not a name, or a call of one with keyword arguments.
    """
    try:
        node = ast.parse(string.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        node = None
    if isinstance(node, ast.Name):
        return Call(node.id, {})
    if not isinstance(node, ast.Call):
        raise _unreadable(string)
    return _call(node, string)


def spell(call: Call) -> str:
    """The string that `parse` reads as this call."""
    return f"{call.name}({', '.join(f'{k}={_argument_of(v)}' for k, v in call.arguments.items())})"


def _argument_of(value: Any) -> str:
    if isinstance(value, Call):
        return spell(value)
    if isinstance(value, tuple):
        return f"({''.join(f'{_argument_of(item)}, ' for item in value)})"
    return repr(value)


def _unreadable(string: str) -> ConfigError:
    return ConfigError(
        f"{string!r} does not read like 'name' or 'name(argument=value, ...)' with plain values"
    )


def _call(node: ast.Call, string: str) -> Call:
    if not isinstance(node.func, ast.Name):
        raise _unreadable(string)
    if node.args:
        raise ConfigError(
            f"{string!r}: write each argument with its name, {node.func.id}(argument=value)"
        )
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise _unreadable(string)
        arguments[keyword.arg] = _argument(keyword.value, string)
    return Call(node.func.id, arguments)


def _argument(node: ast.expr, string: str) -> Any:
    if isinstance(node, ast.Call):
        return _call(node, string)
    if isinstance(node, ast.Tuple) and any(isinstance(item, ast.Call) for item in node.elts):
        return tuple(_argument(item, string) for item in node.elts)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        text = ast.unparse(node)
        hint = f"; a component is written {text}()" if isinstance(node, ast.Name) else ""
        raise ConfigError(
            f"{string!r}: {text} is not a plain value (a number, True, None, a string in quotes, a "
            f"tuple of these) nor a call{hint}"
        ) from None


def changed(string: str, **arguments: Any) -> str:
    """The same component with these arguments, and its others: `changed(source, split="test")`."""
    call = parse(string)
    return spell(call._replace(arguments=call.arguments | arguments))


def lookup(registry: Mapping[str, Any], name: str, field: str) -> Any:
    """The registry's entry of a plain name; `field` is the config field that gives it."""
    if name not in registry:
        raise ConfigError(f"{field} = {name!r}: no such name; {nearest(name, registry)}")
    return registry[name]


def construct(registry: Mapping[str, Callable], name: str, field: str, **fields: Any) -> Any:
    """Calls the registry's entry of a plain name with the fields of a config section.

    Raises:
        ConfigError: no such name, or the entry refused a field (a ValueError of its own).
    """
    entry = lookup(registry, name, f"{field}.name")
    try:
        return entry(**fields)
    except ValueError as error:
        raise ConfigError(f"{field}: {error}") from error


def resolve(
    registry: Mapping[str, Callable], string: str, field: str, context: Iterable[str] = ()
) -> tuple[Callable, dict[str, Any]]:
    """The callable and the arguments that a string names, checked but not called.

    Args:
        registry: names and their callables.
        string: as `parse` reads it.
        field: the config field that gives the string, for messages: `config.diffusion.schedule`.
        context: names of arguments that the program supplies, and so the string may not.

    Raises:
        ConfigError: unknown name or argument, or a value of another type than the annotated.
    """
    try:
        call = parse(string)
    except ConfigError as error:
        raise ConfigError(f"{field} = {error}") from None
    return _resolve(registry, call, f"{field} = {string!r}", context)


def _resolve(
    registry: Mapping[str, Callable], call: Call, where: str, context: Iterable[str]
) -> tuple[Callable, dict[str, Any]]:
    name, arguments = call
    if name not in registry:
        raise ConfigError(f"{where}: no {name!r}; {nearest(name, registry)}")
    component = registry[name]
    parameters = inspect.signature(component).parameters
    free = set(_named(parameters)) - set(context)
    for argument, value in arguments.items():
        if argument in context or (argument not in free and not _takes_any(parameters)):
            raise ConfigError(
                f"{where}: {name} has no argument {argument!r}; {nearest(argument, free)}"
            )
        for inner in _calls(value):
            _resolve(registry, inner, where, context)
        annotation = parameters[argument].annotation if argument in parameters else Any
        if not _fits(value, annotation):
            raise ConfigError(f"{where}: {argument} must be {_spell(annotation)}, not {value!r}")
    return component, arguments


def _calls(value: Any) -> list[Call]:
    """The calls in an argument: itself, or among the items of a tuple."""
    if isinstance(value, Call):
        return [value]
    items = value if isinstance(value, tuple) else ()
    return [item for item in items if isinstance(item, Call)]


def build(registry: Mapping[str, Callable], string: str, field: str, **context: Any) -> Any:
    """Calls the component that a string names.

    Args:
        registry: names and their callables.
        string: as `parse` reads it.
        field: the config field that gives the string, for messages: `config.diffusion.schedule`.
        **context: what the program supplies beside the literals (a schedule, a learning rate). A
            component gets those that its signature names, so it asks for what it needs and no more.

    Raises:
        ConfigError: as `resolve`; a required argument is missing; or the component refused a value
            (a ValueError of its own) or found no file.
    """
    resolve(registry, string, field, context)
    return _build(registry, parse(string), f"{field} = {string!r}", context)


def _build(
    registry: Mapping[str, Callable], call: Call, where: str, context: Mapping[str, Any]
) -> Any:
    component = registry[call.name]

    def value(given: Any) -> Any:
        if isinstance(given, Call):
            return _build(registry, given, where, context)
        return tuple(map(value, given)) if _calls(given) else given

    arguments = {name: value(given) for name, given in call.arguments.items()}
    parameters = inspect.signature(component).parameters
    given = {k: v for k, v in context.items() if k in parameters or _takes_any(parameters)}
    missing = [
        name
        for name in _named(parameters)
        if parameters[name].default is inspect.Parameter.empty and name not in arguments | given
    ]
    if missing:
        wanted = ", ".join(f"{argument}=..." for argument in missing)
        raise ConfigError(f"{where}: write {call.name}({wanted}); it has no default")
    try:
        return component(**arguments, **given)
    except ConfigError:
        raise
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"{where}: {error}") from error


def check(config: Mapping | ConfigDict) -> None:
    """Checks the name and arguments of every component of a config; builds and compiles nothing.

    This imports the packages that hold the registries, and with them JAX;
    `training.config.validate` is the part of the checks that does without.
    """

    def registry(place):
        module, name = place.split(":")
        return getattr(importlib.import_module(module), name)

    def value(field):
        return functools.reduce(operator.getitem, field.split("."), config)

    for field, place in NAMES.items():
        lookup(registry(place), value(field), f"config.{field}")
    calls = CALLS | {f"ema.{name}": "training.ema:EMAS" for name in config["ema"]}
    for field, place in calls.items():
        given = value(field)
        # An empty string is no component, where a field allows that.
        for string in filter(None, (given,)) if isinstance(given, str) else given:
            resolve(registry(place), string, f"config.{field}")


def _named(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    """Parameters that a keyword argument can reach."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, parameter in parameters.items() if parameter.kind in kinds]


def _takes_any(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def _fits(value: Any, annotation: Any) -> bool:
    """Whether an argument is of the annotated type; what a call gives is not known yet."""
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return value in typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(annotation))
    if annotation in (None, type(None)):
        return value is None
    if isinstance(value, Call):
        return origin is None and annotation not in PLAIN
    kind = origin or annotation
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    untyped = kind in (Any, inspect.Parameter.empty) or not isinstance(kind, type)
    return untyped or isinstance(value, kind)


def _spell(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(repr(option) for option in typing.get_args(annotation))
    if not isinstance(annotation, type):
        return str(annotation)
    name = annotation.__name__
    return name if annotation in PLAIN else f"a call that gives a {name}"
