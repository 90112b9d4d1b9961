"""Checks of options given by name."""

import difflib
from collections.abc import Sequence


def check_option(field: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ValueError, with the nearest allowed name, unless `value` is one of `allowed`."""
    if value in allowed:
        return
    near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    names = ", ".join(repr(name) for name in allowed)
    raise ValueError(f"{field}={value!r}: must be one of {names}{hint}")
