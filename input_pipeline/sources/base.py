"""What a data source is."""

import abc
import functools
from collections.abc import Collection, Sequence

import grain
import numpy as np


class Source(abc.ABC):
    """Examples by index.

    An example is a dict with `image` (uint8 [height, width, channels], or the bytes of an image
    file) and, as `fields` tells, `label` (int), `caption` (str), other scalars and arrays. A source
    is sent to worker processes, so it is picklable, and what it has open it opens again there.

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

    def examples(self, indices: Sequence[int], fields: Collection[str]) -> list[dict]:
        """Many examples, in the order of `indices`; faster where a source can read them at once."""
        return [self.example(index, fields) for index in indices]

    def order(self, positions: Sequence[int], seed: int, shuffle: bool) -> list[int]:
        """Indices of the examples at these positions of an endless stream.

        The stream is one permutation of the source after the other, or its own order repeated.
        """
        count = len(self)
        if not shuffle:
            return [position % count for position in positions]
        shuffled, last = grain.experimental.index_shuffle, count - 1
        places = (divmod(position, count) for position in positions)
        return [shuffled(index, last, derived_seed(seed, epoch), 4) for epoch, index in places]

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


class Subset(Source):
    """Some examples of a source, in the order in which they are named.

    what: says which they are; part of the fingerprint.
    """

    def __init__(self, source: Source, indices: Sequence[int], name: str, what: str):
        self.name, self.fields, self.class_names = name, source.fields, source.class_names
        self._source, self._indices, self._what = source, indices, what

    @property
    def fingerprint(self) -> str:
        """Of the source, and which examples."""
        return f"{self._source.fingerprint}-{self._what}"

    def __len__(self) -> int:
        return len(self._indices)

    def example(self, index: int, fields: Collection[str]) -> dict:
        """The fields asked for."""
        return self._source.example(self._indices[index], fields)

    def examples(self, indices: Sequence[int], fields: Collection[str]) -> list[dict]:
        """Many examples, read together where the source can."""
        return self._source.examples([self._indices[index] for index in indices], fields)


def check_name(argument: str, value: object, allowed: Sequence) -> None:
    """Raises ValueError, naming what is allowed, when `value` is none of it."""
    if value not in allowed:
        raise ValueError(f"{argument}: {value!r} is none of {', '.join(map(repr, allowed))}")


@functools.cache
def derived_seed(seed: int, number: int) -> int:
    """The `number`-th of the unrelated seeds that follow from one."""
    # Hashed, so that number 1 of seed 0 is not number 0 of seed 1.
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
