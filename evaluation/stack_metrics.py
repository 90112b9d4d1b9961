"""Metrics of a stack: what its pictures of a split's captions show."""

import abc
import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

import input_pipeline
from evaluation import metrics
from evaluation.caption_accuracy import caption_accuracy
from evaluation.extractors import EXTRACTORS, CaptionEncoder, Runner
from evaluation.prior import quality
from evaluation.protocols import PROTOCOLS
from evaluation.references import Reference
from evaluation.retrieval import check_templates, class_embeddings
from input_pipeline.images import to_array
from input_pipeline.sources.base import Source
from pipelines.text_to_image import TextToImage
from training import components, stack
from training.components import ConfigError
from training.encoder import Encoder
from training.processes import whole

log = logging.getLogger(__name__)

_FIELD = "config.evaluate.metrics"
Draw = Callable[[Sequence[str]], UInt8[np.ndarray, "count size size channels"]]


@dataclasses.dataclass(frozen=True)
class StackMetric(abc.ABC):
    """A metric of the pictures that a stack makes of captions.

    Attributes:
        split: of the stack's pairs, whose captions are drawn.
        count: of them, the first ones; 0: all. Of a split that has fewer all, with a warning.
    """

    split: str = "test"
    count: int = 256

    def __call__(self, pipeline: TextToImage, draw: Draw, config: Any) -> dict[str, Any]:
        """Values as JSON; `draw(captions)` gives pictures, sample i of caption i.

        Raises:
            ConfigError: the data have no such split or no captions.
        """
        source = captioned(config, self.split)
        if self.count > len(source):
            log.warning(
                "%s: count=%d, and %s has %d examples: all are measured",
                type(self).__name__,
                self.count,
                source.name,
                len(source),
            )
        rows = range(min(self.count or len(source), len(source)))
        return self.measure(pipeline, draw, source, rows, config.generate)

    @abc.abstractmethod
    def measure(
        self, pipeline: TextToImage, draw: Draw, source: Source, rows: range, settings: Any
    ) -> dict[str, Any]:
        """The values, of these examples of the split; `settings` are config.generate."""


@dataclasses.dataclass(frozen=True)
class CaptionAccuracy(StackMetric):
    """Share of the pictures that the reader of scenes reads back as captioned.

    `evaluation.caption_accuracy.caption_accuracy`; captions are those of the source `shapes`, and
    'real' has the same of the split's own pictures, which bounds what can be asked for.
    """

    def measure(
        self, pipeline: TextToImage, draw: Draw, source: Source, rows: range, settings: Any
    ) -> dict[str, Any]:
        """See `caption_accuracy`."""
        captions, real = _examples(source, rows, pipeline.size)
        try:
            return caption_accuracy(draw(captions), captions) | {
                "real": caption_accuracy(real, captions)["all"]
            }
        except ValueError as error:
            raise ConfigError(f"{_FIELD}: caption_accuracy: {error}") from error


@dataclasses.dataclass(frozen=True)
class DecodedQuality(StackMetric):
    """How near the pictures are to the true ones in CLIP's space: `evaluation.prior.quality`.

    The fixed evaluation of a prior, after decoding: of CLIP's embeddings of the pictures in place
    of those that the prior drew.
    """

    def measure(
        self, pipeline: TextToImage, draw: Draw, source: Source, rows: range, settings: Any
    ) -> dict[str, Any]:
        """See `quality`."""
        clip = pipeline.clip
        captions, true = embedded(clip, source, rows)
        return quality(_seen(clip, draw(captions))[None], true, clip.captions(captions))


@dataclasses.dataclass(frozen=True)
class PictureZeroShot(StackMetric):
    """Share of the pictures whose class, in the eyes of the stack's own CLIP, is the captions'.

    The class is found as in `evaluation.retrieval.ZeroShot`; 'real' has the accuracy on the split's
    own pictures. The stack was trained on this CLIP: a classifier that it never saw can say less.

    Attributes:
        templates: texts with one {} for the class's name.
    """

    templates: tuple[str, ...] = ("a {}",)

    def __post_init__(self):
        check_templates(self.templates)

    def measure(
        self, pipeline: TextToImage, draw: Draw, source: Source, rows: range, settings: Any
    ) -> dict[str, Any]:
        """{'accuracy': a fraction, 'real': that of the split's, 'count': , 'classes': }."""
        clip = pipeline.clip
        classes = class_embeddings(clip, source, self.templates)
        captions, true = embedded(clip, source, rows)
        labels = [example["label"] for example in source.examples(rows, ("label",))]

        def accuracy(embeddings: Float[np.ndarray, "count embedding"]) -> float:
            return float(((embeddings @ classes.T).argmax(1) == labels).mean())

        return {
            "accuracy": accuracy(_seen(clip, draw(captions))),
            "real": accuracy(true),
            "count": len(labels),
            "classes": len(classes),
        }


@dataclasses.dataclass(frozen=True)
class DrawnQuality(StackMetric):
    """How good the image embeddings are that the decoder is given: `evaluation.prior.quality`.

    Of any prior and of none; the first draws are those that the pictures are made of.

    Attributes:
        seeds: draws of each caption.
    """

    seeds: int = 2

    def measure(
        self, pipeline: TextToImage, draw: Draw, source: Source, rows: range, settings: Any
    ) -> dict[str, Any]:
        """See `quality`."""
        captions, true = embedded(pipeline.clip, source, rows)
        draws = [
            self._embed(pipeline, captions, settings.seed + k, settings.batch_size)
            for k in range(self.seeds)
        ]
        return quality(np.stack(draws), true, pipeline.clip.captions(captions))

    def _embed(
        self, pipeline: TextToImage, captions: Sequence[str], seed: int, size: int
    ) -> Float[np.ndarray, "count embedding"]:
        count, ways = len(captions), pipeline.batch_ways
        size, found = -(-size // ways) * ways, []
        for start in range(0, count, size):
            # The last batch is filled up from the start: one shape, one program.
            of = np.arange(start, start + size, dtype=np.int32) % count
            found.append(whole(pipeline.embed([captions[i] for i in of], seed, of)))
        return np.concatenate(found)[:count]


@dataclasses.dataclass(frozen=True)
class ClipScore(StackMetric):
    """How well the pictures go with their captions in the eyes of a CLIP (Hessel et al. 2021).

    'real' has the score of the split's own pictures. Scores of different CLIPs do not compare: the
    CLIP's identity is among the values.

    Attributes:
        extractor: a CLIP of `evaluation.extractors.EXTRACTORS`, such as "clip(model='vitl14')".
        tokenizer: of a published CLIP: its tokenizer.json, or the directory of its vocabulary.
    """

    extractor: str = "clip(model='vitl14')"
    tokenizer: str = ""

    def measure(
        self, pipeline: TextToImage, draw: Draw, source: Source, rows: range, settings: Any
    ) -> dict[str, Any]:
        """See `evaluation.metrics.clip_score`."""
        clip = components.build(EXTRACTORS, self.extractor, _FIELD)
        words, see = CaptionEncoder(clip, self.tokenizer), Runner(clip)
        captions, real = _examples(source, rows, pipeline.size)
        told = words(captions)
        found = metrics.clip_score(see(draw(captions))["embedding"], told)
        return {
            "clip_score": found.mean,
            "standard_error": found.standard_error,
            "real": metrics.clip_score(see(real)["embedding"], told).mean,
            "count": found.count,
            "clip": dict(clip.identity),
        }


@dataclasses.dataclass(frozen=True)
class PictureQuality(StackMetric):
    """A protocol of `evaluation.protocols` on the pictures, against those of the split itself.

    Attributes:
        protocol: as in the evaluation of a run: 'adm', "classifier(workdir='runs/cls')", ...
    """

    protocol: str = "edm"

    def measure(
        self, pipeline: TextToImage, draw: Draw, source: Source, rows: range, settings: Any
    ) -> dict[str, Any]:
        """See `evaluation.protocols.Protocol`."""
        protocol = components.build(PROTOCOLS, self.protocol, _FIELD)
        see = Runner(protocol.make_extractor(""))
        protocol.check_outputs(see.extractor)
        captions, real = _examples(source, rows, pipeline.size)
        features = see(real)
        moments = {name: metrics.Moments.of(rows) for name, rows in features.items()}
        reference = Reference(source.name, {}, moments, features)
        protocol.check(reference, len(captions), source.name)
        found = protocol(see(draw(captions)), reference)
        return found | {"count": len(captions), "extractor": dict(see.extractor.identity)}


def _seen(
    clip: Encoder, pictures: UInt8[np.ndarray, "count side side 3"]
) -> Float[np.ndarray, "count embedding"]:
    """CLIP's embeddings of pictures of any size."""
    data = clip.config.data
    if pictures.shape[1] != data.image_size:
        pictures = np.stack([to_array(x, data.image_size, data.channels) for x in pictures])
    return clip.images(pictures)


def _examples(
    source: Source, rows: Sequence[int], side: int
) -> tuple[list[str], UInt8[np.ndarray, "count side side 3"]]:
    examples = source.examples(rows, ("image", "caption"))
    images = np.stack([to_array(example["image"], side, 3) for example in examples])
    return [example["caption"] for example in examples], images


def captioned(config: Any, split: str) -> Source:
    """A split of the pairs of a stack.

    Raises:
        ConfigError: the data have no such split or no captions.
    """
    spec = components.changed(stack.pairs_of(config), split=split)
    source = components.build(input_pipeline.SOURCES, spec, "config.pairs")
    if "caption" not in source.fields:
        raise ConfigError(f"config.pairs: {source.name} has no captions to be drawn")
    return source


def embedded(
    clip: Encoder, source: Source, rows: Sequence[int]
) -> tuple[list[str], Float[np.ndarray, "count embedding"]]:
    """(captions, CLIP's embeddings of the images) of examples."""
    size, channels = clip.config.data.image_size, clip.config.data.channels
    examples = source.examples(rows, ("image", "caption"))
    images = np.stack([to_array(example["image"], size, channels) for example in examples])
    return [example["caption"] for example in examples], clip.images(images)
