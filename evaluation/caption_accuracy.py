"""Do samples show the scenes that their captions, or their labels, ask for?"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

import input_pipeline
from evaluation import scenes
from input_pipeline.decoder import Decoder
from input_pipeline.sources.shapes_render import BACKGROUNDS, COLOURS, SHAPES, SIZES
from training import components
from training.components import ConfigError

_FIELD = "config.evaluate.metrics"
ATTRIBUTES = (
    "shape",
    "colour",
    "size",
    "position",
    "second_shape",
    "second_colour",
    "second_size",
    "background",
)
_PHRASES = {
    "": "centre",
    " on the left": "left",
    " on the right": "right",
    " at the top": "top",
    " at the bottom": "bottom",
}


def _grammar() -> re.Pattern:
    def one_of(name: str, words) -> str:
        return f"(?P<{name}>{'|'.join(words)})"

    def thing(prefix: str) -> str:
        words = {"size": SIZES, "colour": COLOURS, "shape": SHAPES}
        return "a " + " ".join(one_of(prefix + key, value) for key, value in words.items())

    where = f"{one_of('place', _PHRASES)}|(?: {one_of('relation', scenes.RELATIONS)} "
    where += thing("second_") + ")"
    return re.compile(f"{thing('')}(?:{where}) on a {one_of('background', BACKGROUNDS)} background")


_CAPTION = _grammar()


def parse(caption: str) -> dict[str, str]:
    """The attributes that a caption of the source `shapes` names; 'none' where it has no second.

    Raises:
        ValueError: it is no such caption.
    """
    match = _CAPTION.fullmatch(caption)
    if match is None:
        raise ValueError(
            f"caption {caption!r} is none of the source 'shapes', such as 'a small red circle "
            "above a large blue star on a grey background'"
        )
    words = match.groupdict()
    position = words["relation"] or _PHRASES[words["place"]]
    named = {name: words.get(name) or scenes.NONE for name in ATTRIBUTES}
    return named | {"position": position}


def caption_accuracy(
    images: UInt8[np.ndarray, "count side side 3"],
    captions: Sequence[str | Mapping[str, str]],
) -> dict[str, Any]:
    """Share of the images that the reader of scenes reads back as captioned.

    Two objects have two true descriptions, 'a left of b' and 'b right of a': the one that agrees in
    more attributes counts. The second object's attributes are measured where the caption names one;
    that a lone object is alone is part of 'all' and of its position, which is then a place.

    Args:
        images: 32 or 64 pixels a side.
        captions: captions of the source `shapes`, or the attributes themselves.

    Returns:
        'all': share that is right in every attribute; 'attributes': {name: share}; 'unknown':
        {name: share of images where the reader could not tell}; 'count'.

    Raises:
        ValueError: a caption that is not of the grammar, or not as many captions as images.
    """
    if len(images) != len(captions) or not len(images):
        raise ValueError(f"captions: {len(captions)} for {len(images)} images; give one each")
    right: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    unknown: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    everything = []
    for caption, reading in zip(captions, scenes.read(images), strict=True):
        asked = parse(caption) if isinstance(caption, str) else caption
        told = best_description(reading, asked)
        everything.append(all(told[name] == asked[name] for name in ATTRIBUTES))
        for name in ATTRIBUTES:
            if asked[name] != scenes.NONE:
                right[name].append(told[name] == asked[name])
                unknown[name].append(told[name] == scenes.UNKNOWN)
    return {
        "all": float(np.mean(everything)),
        "attributes": _shares(right),
        "unknown": _shares(unknown),
        "count": len(images),
    }


def best_description(reading: scenes.Reading, asked: Mapping[str, str]) -> dict[str, str]:
    """Of the true descriptions of an image the one that agrees most with what was asked for."""
    return max(
        reading.attributes, key=lambda told: sum(told[name] == asked[name] for name in ATTRIBUTES)
    )


def _shares(values: Mapping[str, list[bool]]) -> dict[str, float]:
    return {name: float(np.mean(value)) for name, value in values.items() if value}


@dataclasses.dataclass(frozen=True)
class SceneAccuracy:
    """Fraction of class-conditional samples of `shapes` with an object of the label's kind.

    The label is shape and colour of the first object, and which of two is the first cannot be seen;
    so a sample is right if one of its one or two objects has both.

    Attributes:
        split: split of the real images on which the reader itself is measured, as the bound of what
            can be asked of samples.
        max_examples: images taken from it at most.
    """

    split: str = "test"
    max_examples: int = 500

    def __call__(
        self,
        images: UInt8[np.ndarray, "count height width channels"],
        labels: Int[np.ndarray, " count"] | None,
        config: Any,
    ) -> dict[str, Any]:
        """Accuracies as fractions; 'shape' and 'colour' each alone, 'accuracy' of one object.

        `objects` is the share of samples with no, one, two or more objects.

        Raises:
            ConfigError: samples have no labels, or the run is not of `shapes`.
        """
        if labels is None:
            raise ConfigError(f"{_FIELD}: scene_accuracy needs samples of classes; these have none")
        real_images, real_labels = self._real(config)
        readings = scenes.read(images)
        right = _shows(readings, labels)
        counts = np.array([len(reading.things) for reading in readings])
        known = [
            bool(reading.things)
            and all(scenes.UNKNOWN not in (thing.shape, thing.colour) for thing in reading.things)
            for reading in readings
        ]
        return {
            "accuracy": float(right["both"].mean()),
            "shape": float(right["shape"].mean()),
            "colour": float(right["colour"].mean()),
            "per_class": {
                str(label): float(right["both"][labels == label].mean())
                for label in np.unique(labels)
            },
            "objects": {
                "none": float((counts == 0).mean()),
                "one": float((counts == 1).mean()),
                "two": float((counts == 2).mean()),
                "more": float((counts > 2).mean()),
            },
            "all_objects_known": float(np.mean(known)),
            "count": len(images),
            "reader_accuracy": float(_shows(scenes.read(real_images), real_labels)["both"].mean()),
            "reader_count": len(real_images),
        }

    def _real(
        self, config: Any
    ) -> tuple[UInt8[np.ndarray, "count height width channels"], Int[np.ndarray, " count"]]:
        if components.parse(config.data.source).name != "shapes":
            raise ConfigError(
                f"{_FIELD}: scene_accuracy reads scenes of config.data.source = 'shapes(...)', not "
                f"of {config.data.source!r}"
            )
        spec = components.changed(config.data.source, split=self.split)
        source = components.build(input_pipeline.SOURCES, spec, _FIELD)
        size, fields = config.data.image_size, ("image", "label")
        decoder = Decoder(source, size, config.data.channels, fields, "raise")
        examples = list(decoder(range(min(self.max_examples, len(source))), []))
        return (
            np.stack([example["image"] for example in examples]),
            np.array([example["label"] for example in examples]),
        )


def _shows(
    readings: Sequence[scenes.Reading], labels: Int[np.ndarray, " count"]
) -> dict[str, np.ndarray]:
    """Whether each image has one or two objects, of which one is as its label says."""
    right: dict[str, list[bool]] = {"shape": [], "colour": [], "both": []}
    for reading, label in zip(readings, labels, strict=True):
        shape, colour = SHAPES[label // len(COLOURS)], list(COLOURS)[label % len(COLOURS)]
        things = reading.things if len(reading.things) <= 2 else ()
        right["shape"].append(any(thing.shape == shape for thing in things))
        right["colour"].append(any(thing.colour == colour for thing in things))
        right["both"].append(
            any((thing.shape, thing.colour) == (shape, colour) for thing in things)
        )
    return {name: np.array(value) for name, value in right.items()}
