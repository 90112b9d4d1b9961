"""Configs from the command line: `--config=file.py:variant` and `--config.train.steps=5`."""

import ast
import difflib
import importlib.util
import re
import traceback
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from training.components import ConfigError
from training.config import flatten, load, no_field

OVERRIDE = re.compile(r"--?(?P<no>no)?config\.(?P<field>[^=]+)(=(?P<value>.*))?", re.DOTALL)
ALLOWED = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a string",
    tuple: "a tuple: 1,2 or \"('a', 'b')\"",
    ConfigDict: "a dict: \"{'name': value}\"",
}


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Parts a command line into (overrides of the config, all the rest)."""
    overrides = [argument for argument in arguments if OVERRIDE.fullmatch(argument)]
    return overrides, [argument for argument in arguments if argument not in overrides]


def read(path: str) -> ConfigDict:
    """The config that `--config` names: `file.py`, `file.py:variant` or a stored `config.json`.

    Raises:
        ConfigError: no such file, or whatever went wrong inside it, with the line.
    """
    if path.endswith(".json"):
        return load(path)
    given = path
    path, _, variant = given.partition(":")
    if not Path(path).is_file():
        raise ConfigError(f"--config={path}: no such file; {_nearest_file(Path(path))}")
    spec = importlib.util.spec_from_file_location("config", path)
    if spec is None:
        raise ConfigError(f"--config={path}: must be a .py file, or a config.json of a run")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(variant) if variant else module.get_config()
    except Exception as error:
        raise ConfigError(f"--config={given}: {_cause(error, spec.origin)}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"--config={path}: get_config() returned {config!r}, not a ConfigDict")
    return config


def override(config: ConfigDict, arguments: Sequence[str]) -> None:
    """Sets the fields that `--config.field=value` arguments name, the later one last.

    Raises:
        ConfigError: no such field, or a value of another type.
    """
    for argument in arguments:
        match = OVERRIDE.fullmatch(argument)
        field, text = match["field"], match["value"]
        known = flatten(config)
        sections = {name.rpartition(".")[0] for name in known} - {""}
        if field not in known and field not in sections:
            raise ConfigError(f"--config.{field}: {no_field(field, known)}")
        kind = config_flags.config_path.get_type(field, config)
        if text is None and kind is not bool:
            raise ConfigError(f"--config.{field}: needs a value; write --config.{field}=value")
        if kind is tuple:
            argument = f"--config.{field}={_quote_items(text)}"
        values = flags.FlagValues()
        command_line = ["main.py", argument]
        try:
            config_flags.DEFINE_config_dict(
                "config", config, flag_values=values, sys_argv=command_line
            )
            values(command_line)
        except (flags.Error, TypeError) as error:
            allowed = ALLOWED.get(kind, kind.__name__)
            raise ConfigError(f"{argument}: must be {allowed}") from error


def _quote_items(text: str) -> str:
    """Turns `flip,crop(size=3)` into a tuple of strings; anything else stays as it is."""
    try:
        node = ast.parse(text, mode="eval").body
    except SyntaxError:
        return text
    if isinstance(node, ast.Tuple) and all(isinstance(e, ast.Name | ast.Call) for e in node.elts):
        return repr(tuple(ast.get_source_segment(text, item) for item in node.elts))
    return text


def _nearest_file(path: Path) -> str:
    """Which of the files beside a missing one, or else of the configs, is meant."""
    folder = path.parent if path.parent.is_dir() else Path(__file__).parent.parent / "configs"
    files = {file.name: file for file in sorted(folder.glob("*.py")) if file.stem != "__init__"}
    close = difflib.get_close_matches(path.name, files, 1)
    if close:
        return f"did you mean {files[close[0]]}?"
    return f"{folder} has " + (", ".join(files) or "no .py file")


def _cause(error: Exception, file: str) -> str:
    """An exception in a config file in one line. A ValueError speaks for itself."""
    if type(error) is ValueError:
        return str(error)
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    where = f"line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {error}"
