"""How well a CLIP finds the caption of an image, the image of a caption, and the class of an image.

These are metrics of a model: the evaluation job gives them its encoder, and no samples.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float

import input_pipeline
from input_pipeline.sources.base import Source
from training import components
from training.components import ConfigError
from training.encoder import Encoder

_FIELD = "config.evaluate.metrics"


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Recall at k, both ways, among `count` examples of a split.

    Images of the same caption are right answers to it alike, and each caption stands once among the
    candidates: otherwise a perfect model could not reach 1.

    Attributes:
        split: of the run's data source.
        count: examples, in a random order that is always the same; 0: all.
        ks: how many answers may be given.
    """

    needs: ClassVar[str] = "encoder"
    split: str = "test"
    count: int = 1000
    ks: tuple[int, ...] = (1, 5, 10)

    def __call__(self, encoder: Encoder) -> dict[str, Any]:
        """{'image_to_text': {'R@1': ...}, 'text_to_image': ..., 'images': , 'captions': }."""
        source = _source(encoder.config, self.split)
        _require(source, "retrieval", ("caption",))
        found = encoder.source(source, ("caption",), self.count)
        captions, own = np.unique(found["caption"], return_inverse=True)
        similarity = found["embedding"] @ encoder.captions(captions.tolist()).T
        right = own[:, None] == np.arange(len(captions))
        return {
            "image_to_text": recall(similarity, right, self.ks),
            "text_to_image": recall(similarity.T, right.T, self.ks),
            "images": len(own),
            "captions": len(captions),
        }


@dataclasses.dataclass(frozen=True)
class ZeroShot:
    """Accuracy of the class whose name, in words around it, is nearest to an image.

    The embedding of a class is the mean over all templates (Radford et al. 2021, section 3.1.4).

    Attributes:
        split: of the run's data source.
        templates: texts with one {} for the class's name.
        only: (field, value): of the examples those where the field has that value; (): all.
        count: examples that are looked at, as in `Retrieval`; 0: all.
    """

    needs: ClassVar[str] = "encoder"
    split: str = "test"
    templates: tuple[str, ...] = ("a {}",)
    only: tuple[str, ...] = ()
    count: int = 0

    def __post_init__(self):
        check_templates(self.templates)
        if len(self.only) not in (0, 2):
            raise ValueError(f"only={self.only!r}: must be (field, value), or ()")

    def __call__(self, encoder: Encoder) -> dict[str, Any]:
        """{'accuracy': a fraction, 'count': images, 'classes': candidates}."""
        source = _source(encoder.config, self.split)
        fields = ("label", *self.only[:1])
        _require(source, "zero_shot", fields)
        classes = class_embeddings(encoder, source, self.templates)
        found = encoder.source(source, fields, self.count)
        keep = np.ones(len(found["label"]), bool)
        if self.only:
            keep = found[self.only[0]] == self.only[1]
        if not keep.any():
            raise ConfigError(f"{_FIELD}: zero_shot: no example of {source.name} has {self.only}")
        guess = (found["embedding"][keep] @ classes.T).argmax(1)
        return {
            "accuracy": float((guess == found["label"][keep]).mean()),
            "count": int(keep.sum()),
            "classes": len(classes),
        }


def check_templates(templates: Sequence[str]) -> None:
    """Raises ValueError where one has no place for a name, or there is none."""
    if not templates or any("{}" not in template for template in templates):
        raise ValueError(f"templates={templates!r}: each must have a {{}}, and one must be")


def class_embeddings(
    encoder: Encoder, source: Source, templates: Sequence[str]
) -> Float[np.ndarray, "classes embedding"]:
    """Of each class of a source the mean over all templates, of length 1.

    Raises:
        ConfigError: the source has no names of classes.
    """
    names = source.class_names
    if not names:
        raise ConfigError(f"{_FIELD}: zero_shot needs names of classes; {source.name} has none")
    prompts = [template.replace("{}", name) for name in names for template in templates]
    classes = encoder.captions(prompts).reshape(len(names), len(templates), -1).mean(1)
    return classes / np.linalg.norm(classes, axis=1, keepdims=True)


def recall(
    similarity: Float[np.ndarray, "queries candidates"],
    right: Bool[np.ndarray, "queries candidates"],
    ks: Sequence[int],
) -> dict[str, float]:
    """How often a right answer is among the k most similar candidates: {'R@k': a fraction}.

    A wrong answer that is as similar as the best right one comes before it.
    """
    best = np.where(right, similarity, -np.inf).max(1, keepdims=True)
    before = ((similarity >= best) & ~right).sum(1)
    return {f"R@{k}": float((before < k).mean()) for k in ks}


def _source(config: Any, split: str) -> Any:
    spec = components.changed(config.data.source, split=split)
    return components.build(input_pipeline.SOURCES, spec, _FIELD)


def _require(source: Any, metric: str, fields: Sequence[str]) -> None:
    try:
        source.require(fields)
    except ValueError as error:
        raise ConfigError(f"{_FIELD}: {metric}: {error}") from error
