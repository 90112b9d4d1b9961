"""'{root}' in the strings of a stage: the work directory of its stack, wherever that is.

A stage's config.json has it in place of the path, so that a stack may be moved or copied as a
whole; whoever reads it finds the path of the day.
"""

import json
import os
import re
from collections.abc import Callable
from typing import Any

from etils import epath

from training.files import is_bucket

ROOT = "{root}"


def absolute(path: str | os.PathLike[str]) -> str:
    """The path as any directory sees it; a bucket's URL stays as it is."""
    path = os.fspath(path)
    return path if is_bucket(path) else os.path.abspath(path)


def above(config: str | os.PathLike[str]) -> str:
    """What '{root}' stands for in <root>/<stage>/config.json."""
    return os.fspath(epath.Path(absolute(config)).parent.parent)


def stack_of(config: str | os.PathLike[str]) -> str | None:
    """The stack that has <root>/<stage>/config.json for a stage's; None: it is a run by itself."""
    root = above(config)
    record, name = epath.Path(root) / "config.json", epath.Path(absolute(config)).parent.name
    try:
        known = record.exists() and name in json.loads(record.read_text())["stages"]
    except (ValueError, KeyError, TypeError):
        known = False  # some other program's
    return root if known else None


def fill(value: Any, root: str) -> Any:
    """The same with the path in place of '{root}' in all strings of a nested value."""
    return _replaced(value, lambda text: text.replace(ROOT, root))


def unfill(value: Any, root: str) -> Any:
    """The inverse of `fill`: paths of the root and of what is below it; others stay."""
    # A path is the whole string, or in quotes.
    path = re.compile(rf"(^|['\"]){re.escape(root)}(?=$|[/'\"])")
    return _replaced(value, lambda text: path.sub(lambda found: found[1] + ROOT, text))


def _replaced(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {name: _replaced(item, change) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_replaced(item, change) for item in value)
    return change(value) if isinstance(value, str) else value
