"""What the settings of all networks have in common: checks whose errors name the field."""

import difflib
from collections.abc import Sequence

from jaxtyping import Array, Int


class Settings:
    """Base of the frozen dataclasses that say what a network is.

    Each has the fields `num_classes`, `null_class`, `attention` and `dtype`, beside its own.
    """

    def label(self, condition: dict | None) -> Int[Array, " batch"] | None:
        """The label of a network with classes, None of one without; ValueError if they differ."""
        given, wanted = sorted(condition or ()), ["label"] if self.num_classes else []
        if given != wanted:
            raise ValueError(
                f"condition has {given}, but a network with num_classes={self.num_classes} takes "
                f"{wanted or None}"
            )
        return condition["label"] if self.num_classes else None

    def _check_common(self) -> None:
        self._choose("attention", ("xla", "cudnn"))
        self._choose("dtype", ("float32", "bfloat16"))
        self._require("num_classes", self.num_classes >= 0, "must not be negative")
        self._require("null_class", self.num_classes or not self.null_class, "needs num_classes")
        flash = self.attention == "xla" or self.dtype == "bfloat16"
        self._require("attention", flash, "needs dtype='bfloat16'; in float32 it is 'xla'")

    def _positive(self, *names: str) -> None:
        for name in names:
            self._require(name, getattr(self, name) > 0, "must be positive")

    def _choose(self, name: str, allowed: Sequence[str]) -> None:
        value = getattr(self, name)
        if value not in allowed:
            near = difflib.get_close_matches(str(value), allowed, 1, cutoff=0)[0]
            options = ", ".join(allowed)
            raise ValueError(f"{name}={value!r}: allowed are {options}; did you mean {near!r}?")

    def _require(self, name: str, condition, message: str) -> None:
        if not condition:
            raise ValueError(f"{name}={getattr(self, name)!r}: {message}")
