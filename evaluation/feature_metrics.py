"""Metrics of features as parts of a protocol: `frechet(called='fid')`, `kid(subsets=100)`, ...

Each is called as `metric(generated, reference)`, with features by the names of an extractor's
outputs and an `evaluation.references.Reference`, and gives values by name. The arithmetic is that
of `evaluation.metrics`; this says which features it is given and what the values are called.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from evaluation import metrics
from evaluation.references import Reference

Generated = Mapping[str, np.ndarray]


class FeatureMetric(abc.ABC):
    """A metric of a protocol.

    Attributes:
        output: of the extractor, whose features are looked at.
        least: generated images that it needs, at the least.
        of_reference: what it needs of the reference: 'moments', 'features' or nothing.
    """

    output: str
    least: int = 2
    of_reference: ClassVar[str] = "features"

    @abc.abstractmethod
    def __call__(self, generated: Generated, reference: Reference) -> dict[str, Any]:
        """Values by name."""


@dataclasses.dataclass(frozen=True)
class Frechet(FeatureMetric):
    """Fréchet distance, its two terms, and how well it is posed (`evaluation.metrics.Frechet`)."""

    called: str
    output: str = "pool3"
    of_reference: ClassVar[str] = "moments"

    def __call__(self, generated: Generated, reference: Reference) -> dict[str, Any]:
        """The distance under the metric's name, its parts beside it."""
        moments = reference.moments[self.output]
        found = dataclasses.asdict(metrics.frechet_distance(generated[self.output], moments))
        distance = found.pop("distance")
        parts = {f"{self.called}_{name}": value for name, value in found.items()}
        return {self.called: distance, **parts, f"{self.called}_reference_count": moments.count}


@dataclasses.dataclass(frozen=True)
class FrechetInfinity(FeatureMetric):
    """The Fréchet distance at infinitely many images, by extrapolation over random subsets."""

    called: str
    output: str = "pool3"
    points: int = 15
    seed: int = 0
    least: int = 20
    of_reference: ClassVar[str] = "moments"

    def __call__(self, generated: Generated, reference: Reference) -> dict[str, Any]:
        """The intercept and its standard error."""
        features, moments = generated[self.output], reference.moments[self.output]
        found = metrics.frechet_infinity(features, moments, self.points, self.seed)
        return {self.called: found.distance, f"{self.called}_standard_error": found.standard_error}


@dataclasses.dataclass(frozen=True)
class InceptionScore(FeatureMetric):
    """Inception score; `shuffle` < 0 keeps the order of the images."""

    called: str = "inception_score"
    output: str = "logits"
    splits: int = 10
    split_size: int = 0
    shuffle: int = 2020
    least: int = 10
    of_reference: ClassVar[str] = ""

    def __call__(self, generated: Generated, reference: Reference) -> dict[str, Any]:
        """Mean and standard deviation over the parts."""
        shuffle = None if self.shuffle < 0 else self.shuffle
        logits = generated[self.output]
        found = metrics.inception_score(logits, self.splits, self.split_size, shuffle)
        return {self.called: found.mean, f"{self.called}_std": found.std}


@dataclasses.dataclass(frozen=True)
class Kid(FeatureMetric):
    """Kernel distance over random subsets; `subsets` = 0: of all pairs at once."""

    called: str = "kid"
    output: str = "pool3"
    subsets: int = 100
    subset_size: int = 1000
    seed: int = 2020

    @property
    def least(self) -> int:
        """A subset."""
        return self.subset_size if self.subsets else 2

    def __call__(self, generated: Generated, reference: Reference) -> dict[str, Any]:
        """The distance, and over subsets its standard deviation."""
        pair = generated[self.output], reference.features[self.output]
        if not self.subsets:
            return {self.called: metrics.kid_full(*pair)}
        found = metrics.kid(*pair, self.subsets, self.subset_size, self.seed)
        return {self.called: found.mean, f"{self.called}_std": found.std}


@dataclasses.dataclass(frozen=True)
class PrecisionRecall(FeatureMetric):
    """Improved precision and recall; `float16` rounds as guided-diffusion's evaluator does."""

    output: str = "pool3"
    neighbours: int = 3
    float16: bool = False

    @property
    def least(self) -> int:
        """An example and its neighbours."""
        return self.neighbours + 1

    def __call__(self, generated: Generated, reference: Reference) -> dict[str, Any]:
        """Shares."""
        pair = generated[self.output], reference.features[self.output]
        return dataclasses.asdict(metrics.precision_recall(*pair, self.neighbours, self.float16))


@dataclasses.dataclass(frozen=True)
class Prdc(FeatureMetric):
    """Precision, recall, density and coverage of at most `count` images of each set."""

    output: str = "pool3"
    neighbours: int = 5
    count: int = 10_000

    @property
    def least(self) -> int:
        """An example and its neighbours."""
        return self.neighbours + 1

    def __call__(self, generated: Generated, reference: Reference) -> dict[str, Any]:
        """Shares; density may exceed 1."""
        pair = generated[self.output], reference.features[self.output]
        return dataclasses.asdict(
            metrics.prdc(*(features[: self.count] for features in pair), self.neighbours)
        )


@dataclasses.dataclass(frozen=True)
class Cmmd(FeatureMetric):
    """CMMD of CLIP embeddings."""

    output: str = "embedding"
    sigma: float = 10.0
    biased: bool = True

    def __call__(self, generated: Generated, reference: Reference) -> dict[str, Any]:
        """1000 times the squared distance."""
        pair = generated[self.output], reference.features[self.output]
        return {"cmmd": metrics.cmmd(*pair, self.sigma, self.biased)}


@dataclasses.dataclass(frozen=True)
class Vendi(FeatureMetric):
    """Vendi score: how many different images there are, in effect."""

    output: str = "pool3"
    of_reference: ClassVar[str] = ""

    def __call__(self, generated: Generated, reference: Reference) -> dict[str, Any]:
        """Between 1 and the number of images."""
        return {"vendi": metrics.vendi_score(generated[self.output])}


FEATURE_METRICS = {
    "cmmd": Cmmd,
    "frechet": Frechet,
    "frechet_infinity": FrechetInfinity,
    "inception_score": InceptionScore,
    "kid": Kid,
    "prdc": Prdc,
    "precision_recall": PrecisionRecall,
    "vendi": Vendi,
}
