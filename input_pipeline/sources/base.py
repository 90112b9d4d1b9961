"""What a data source is."""

import abc
from collections.abc import Collection, Sequence


class Source(abc.ABC):
    """Examples by index.

    An example is a dict with `image` (uint8 [height, width, channels], or the bytes of an image
    file) and, as `fields` tells, `label` (int), `caption` (str) and other scalars. A source is
    sent to worker processes, so it is picklable, and what it has open it opens again there.

    Attributes:
        name: the source as it is written in a config, for messages.
        fields: names that every example has.
        class_names: names of the labels 0, 1, ...; empty where there are none.
    """

    name: str
    fields: Sequence[str]
    class_names: Sequence[str] = ()

    @property
    def num_classes(self) -> int:
        """How many classes `label` tells apart; 0 where there are no labels."""
        return len(self.class_names)

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Changes when the examples or their order do; checkpoints keep it."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def example(self, index: int, fields: Collection[str]) -> dict:
        """Example `index` with at least these fields."""

    def __getitem__(self, index: int) -> dict:
        return self.example(index, self.fields)

    def describe(self, index: int) -> str:
        """Where an example comes from, for messages."""
        return f"example {index} of {self.name}"

    def require(self, fields: Sequence[str]) -> None:
        """Raises ValueError where the source cannot give one of the fields."""
        for field in fields:
            if field not in self.fields:
                raise ValueError(
                    f"fields: {self.name} has no {field!r}; it has {', '.join(self.fields)}"
                )


def check_name(argument: str, value: object, allowed: Sequence) -> None:
    """Raises ValueError, naming what is allowed, when `value` is none of it."""
    if value not in allowed:
        raise ValueError(f"{argument}: {value!r} is none of {', '.join(map(repr, allowed))}")
