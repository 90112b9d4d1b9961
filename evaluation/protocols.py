"""Named protocols of FID and its kin: which network sees the images how, and what is computed.

The name of a protocol is the name of its rows: numbers of two protocols do not compare, nor do
those of one at different numbers of images. What each is equal to is in docs/evaluation.md.
"""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from evaluation.extractors import EXTRACTORS, Extractor
from evaluation.feature_metrics import FEATURE_METRICS, FeatureMetric
from evaluation.image_files import FileError
from evaluation.references import Reference
from training import components
from training.components import ConfigError

log = logging.getLogger(__name__)
_FIELD = "config.evaluate.metrics"


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A metric of features, in `evaluation.METRICS`.

    Attributes:
        name: of the rows.
        extractor: a line of `evaluation.extractors.EXTRACTORS`.
        metrics: lines of `FEATURE_METRICS`.
        count: images that published numbers are of; 0: any.
    """

    name: str
    extractor: str
    metrics: tuple[str, ...]
    count: int = 0
    needs: ClassVar[str] = "features"

    def __post_init__(self):
        if not self.metrics:
            raise ValueError(f"metrics: empty; name some of {', '.join(sorted(FEATURE_METRICS))}")
        self.built()

    def built(self) -> tuple[FeatureMetric, ...]:
        """The metrics.

        Raises:
            ConfigError: a mistake in one of them.
        """
        where = f"{_FIELD}: {self.name}"
        return tuple(components.build(FEATURE_METRICS, spec, where) for spec in self.metrics)

    def make_extractor(self, weights: str) -> Extractor:
        """The network; `weights` is the directory where files of weights are.

        Raises:
            ConfigError: they are not there and cannot be had, or are others.
        """
        where = f"{_FIELD}: {self.name}"
        try:
            return components.build(EXTRACTORS, self.extractor, where, directory=weights)
        except ConfigError as error:
            prefix = "" if str(error).startswith("config.") else f"{where}: "
            raise ConfigError(f"{prefix}{error} (config.evaluate.weights = {weights!r})") from error

    def check_outputs(self, extractor: Extractor) -> None:
        """Refuses metrics that look at what the network does not give.

        Raises:
            ConfigError: the metric, and what the network gives.
        """
        for spec, metric in zip(self.metrics, self.built(), strict=True):
            if metric.output not in extractor.outputs:
                raise ConfigError(
                    f"{_FIELD}: {self.name}: {spec}: output {metric.output!r} is none of "
                    f"{self.extractor}, which gives {', '.join(extractor.outputs)}"
                )

    def outputs(self) -> tuple[str, ...]:
        """Names of the features that the metrics look at."""
        return tuple(dict.fromkeys(metric.output for metric in self.built()))

    def check(self, reference: Reference, count: int, name: str) -> None:
        """Refuses what cannot be computed, before a sample is drawn for it.

        Args:
            reference: of real images.
            count: generated images.
            name: of these.

        Raises:
            ConfigError: what is missing and what to do.
        """
        for spec, metric in zip(self.metrics, self.built(), strict=True):
            where = f"{_FIELD}: {self.name}: {spec}"
            if count < metric.least:
                raise ConfigError(
                    f"{where}: needs at least {metric.least} images, and there are {count} in "
                    f"{name}; set config.evaluate.count"
                )
            if metric.of_reference and metric.output not in getattr(reference, metric.of_reference):
                raise ConfigError(
                    f"{where}: needs {metric.of_reference} of {metric.output}, and the reference "
                    f"{reference.name} has none; give config.evaluate.reference images, or a file "
                    "that has them"
                )
        if self.count and count != self.count:
            log.warning(
                "%s: published numbers are of %d images, these of %d: they do not compare",
                self.name,
                self.count,
                count,
            )

    def __call__(self, generated: Mapping[str, np.ndarray], reference: Reference) -> dict[str, Any]:
        """Values of all metrics by name, and 'count'.

        Raises:
            ConfigError: features that no metric may have, such as one that is not finite.
        """
        values: dict[str, Any] = {"count": len(next(iter(generated.values())))}
        for spec, metric in zip(self.metrics, self.built(), strict=True):
            try:
                values |= metric(generated, reference)
            except (ValueError, FileError) as error:
                raise ConfigError(f"{_FIELD}: {self.name}: {spec}: {error}") from error
        return values


_FID, _SFID = "frechet(called='fid')", "frechet(called='sfid', output='spatial')"


def adm() -> Protocol:
    """Of guided-diffusion: FID, sFID, Inception score, precision and recall of 50,000 images."""
    score = "inception_score(split_size=5000, shuffle=-1)"
    return Protocol("adm", "inception", (_FID, _SFID, score, "precision_recall"), 50_000)


def edm() -> Protocol:
    """Of EDM and EDM2: FID of 50,000 images; they give the least of three seeds."""
    return Protocol("edm", "inception", (_FID,), 50_000)


def torch_fidelity() -> Protocol:
    """Of torch-fidelity: FID, KID and Inception score."""
    return Protocol("torch_fidelity", "inception", (_FID, "kid", "inception_score"))


def pytorch_fid() -> Protocol:
    """Of pytorch-fid: FID, resized and scaled its way."""
    return Protocol("pytorch_fid", "inception(resize='torch', scaling='127.5')", (_FID,))


def clean() -> Protocol:
    """Of clean-fid: FID and KID of images resized by Pillow's bicubic filter."""
    return Protocol("clean", "inception(resize='clean')", (_FID, "kid"))


def prdc(neighbours: int = 5) -> Protocol:
    """Of dgm-eval: precision, recall, density and coverage of 10,000 images."""
    return Protocol("prdc", "inception", (f"prdc(neighbours={neighbours})",), 10_000)


def fid_infinity() -> Protocol:
    """FID without the bias of the number of images."""
    return Protocol("fid_infinity", "inception", ("frechet_infinity(called='fid_infinity')",))


def fd_dinov2() -> Protocol:
    """Of EDM2: the Fréchet distance of DINOv2's features of 50,000 images."""
    metric = "frechet(called='fd_dinov2', output='embedding')"
    return Protocol("fd_dinov2", "dinov2", (metric,), 50_000)


def cmmd() -> Protocol:
    """Of google-research: CMMD of 30,000 images by CLIP ViT-L/14 at 336 px."""
    return Protocol("cmmd", "clip", ("cmmd",), 30_000)


def vendi() -> Protocol:
    """Vendi score of DINOv2's features."""
    return Protocol("vendi", "dinov2", ("vendi(output='embedding')",))


def classifier(workdir: str, ema: str = "", checkpoint: int = -1) -> Protocol:
    """Distances and scores in the features of a classifier that this codebase trained.

    For data that Inception does not know, such as small grey images. Not FID, and it compares only
    with numbers of the same classifier.
    """
    arguments = {"workdir": workdir, "checkpoint": checkpoint} | ({"ema": ema} if ema else {})
    return Protocol(
        "classifier",
        components.spell(components.Call("classifier", arguments)),
        (
            "frechet(called='classifier_frechet', output='embedding')",
            "kid(called='classifier_kernel', output='embedding', subsets=0)",
            "inception_score(called='classifier_score', splits=1)",
            "precision_recall(output='embedding')",
        ),
    )


def features(extractor: str, metrics: tuple[str, ...]) -> Protocol:
    """Any metrics of any features: `features(extractor='inception', metrics=('vendi',))`."""
    return Protocol("features", extractor, metrics)


PROTOCOLS = {
    "adm": adm,
    "classifier": classifier,
    "clean": clean,
    "cmmd": cmmd,
    "edm": edm,
    "fd_dinov2": fd_dinov2,
    "features": features,
    "fid_infinity": fid_infinity,
    "prdc": prdc,
    "pytorch_fid": pytorch_fid,
    "torch_fidelity": torch_fidelity,
    "vendi": vendi,
}
