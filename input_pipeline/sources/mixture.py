"""Several sources as one, at given weights."""

import bisect
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Collection, Sequence
from fractions import Fraction

from input_pipeline.sources.base import Source, derived_seed


class Mixture(Source):
    """Examples of several sources in turn; made by `mixture`.

    Index i is example i of the sources laid end to end. The weights are in the order: of the first
    n positions each source has its share of n to within half the number of sources, and it goes
    through its own examples in epochs of its own. So each of its examples comes equally often,
    whatever its weight.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float]):
        self._sources = tuple(sources)
        self._ends = list(itertools.accumulate(map(len, sources)))
        # As they are written: 0.1 is a tenth, not the nearest binary fraction.
        exact = [Fraction(str(weight)) for weight in weights]
        self._weights = [weight / sum(exact) for weight in exact]
        # What each source takes of that which those before it left.
        left = [1 - before for before in itertools.accumulate(self._weights, initial=0)]
        self._takes = [
            (weight / rest).as_integer_ratio()
            for weight, rest in zip(self._weights[:-1], left, strict=False)
        ]
        parts = ", ".join(source.name for source in sources)
        self.name = f"mixture(sources=({parts},), weights={tuple(weights)})"
        self.fields = tuple(
            field for field in sources[0].fields if all(field in s.fields for s in sources)
        )
        self._unlike = next(
            (s for s in sources if tuple(s.class_names) != tuple(sources[0].class_names)), None
        )
        if self._unlike is None:
            self.class_names = tuple(sources[0].class_names)
        else:
            self.fields = tuple(field for field in self.fields if field != "label")

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of the parts' fingerprints and the weights."""
        parts = [source.fingerprint for source in self._sources]
        content = json.dumps([parts, [str(weight) for weight in self._weights]])
        return f"mixture-{len(self)}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"

    def __len__(self) -> int:
        return self._ends[-1]

    def order(self, positions: Sequence[int], seed: int, shuffle: bool) -> list[int]:
        """Indices at these positions: of each source a stream of its own, at the weights."""
        ranks, rows = ([[] for _ in self._sources] for _ in range(2))
        for row, position in enumerate(positions):
            part, rank = self._part(position)
            ranks[part].append(rank)
            rows[part].append(row)
        indices = [0] * len(positions)
        for part, source in enumerate(self._sources):
            start = self._start(part)
            own = source.order(ranks[part], derived_seed(seed, part), shuffle)
            for row, index in zip(rows[part], own, strict=True):
                indices[row] = start + index
        return indices

    def _part(self, position: int) -> tuple[int, int]:
        """Which source has a position of the stream, and how many positions it had before."""
        for part, (share, whole) in enumerate(self._takes):
            # The nearest integer to the share of what comes before; whole numbers, so that it
            # is exact however far the stream goes.
            taken = (2 * share * position + whole) // (2 * whole)
            if (2 * share * (position + 1) + whole) // (2 * whole) > taken:
                return part, taken
            position -= taken
        return len(self._takes), position

    def _start(self, part: int) -> int:
        return self._ends[part - 1] if part else 0

    def _place(self, index: int) -> tuple[int, int]:
        part = bisect.bisect_right(self._ends, index)
        return part, index - self._start(part)

    def example(self, index: int, fields: Collection[str]) -> dict:
        """The example as its source gives it."""
        part, own = self._place(index)
        return self._sources[part].example(own, fields)

    def examples(self, indices: Sequence[int], fields: Collection[str]) -> list[dict]:
        """Many examples, those of a source at once."""
        places = [self._place(index) for index in indices]
        found = [{}] * len(places)
        for part, source in enumerate(self._sources):
            rows = [row for row, place in enumerate(places) if place[0] == part]
            if rows:
                own = source.examples([places[row][1] for row in rows], fields)
                for row, example in zip(rows, own, strict=True):
                    found[row] = example
        return found

    def describe(self, index: int) -> str:
        """Where the source that it comes from has the example."""
        part, own = self._place(index)
        return self._sources[part].describe(own)

    def require(self, fields: Sequence[str]) -> None:
        """Raises ValueError where a source cannot give one of the fields."""
        for source in self._sources:
            source.require(fields)
        if "label" in fields and self._unlike is not None:
            first = self._sources[0]
            raise ValueError(
                f"fields: {self.name} has no 'label', for its sources mean other classes by it: "
                f"{first.name} has {_spell(first)}, {self._unlike.name} {_spell(self._unlike)}; "
                "train without labels, or give folders the same classes=(...)"
            )
        super().require(fields)


def mixture(sources: tuple[Source, ...], weights: tuple[float, ...]) -> Mixture:
    """Several sources at once, in one deterministic order.

    Of any n examples in a row each source gives its weight's share, to within as many examples as
    there are sources. Batches have the fields that all sources have; labels only where all name
    the same classes. An epoch is as many examples as the sources have together: one whose weight
    is above its part of these comes round more than once in it, another less than once.

    Args:
        sources: two or more.
        weights: one each; only their ratios count.
    """
    if not sources or len(sources) != len(weights):
        raise ValueError(
            f"mixture: one weight for each source, not {len(weights)} for {len(sources)}"
        )
    if wrong := [weight for weight in weights if not 0 < weight < math.inf]:
        raise ValueError(f"mixture: weights must be above 0 and finite, not {wrong[0]}")
    if empty := [source.name for source in sources if not len(source)]:
        raise ValueError(f"mixture: {empty[0]} is empty")
    return Mixture(sources, weights)


def _spell(source: Source) -> str:
    names = source.class_names
    return ", ".join(names[:3]) + f" ({len(names)} in all)" if names else "no classes"
