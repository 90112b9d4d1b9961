"""Metrics of a stack's pictures, before a CLIP whose eyes are known."""

import types

import numpy as np
import pytest

from evaluation.stack_metrics import PictureZeroShot
from input_pipeline.sources.base import Source
from pipelines.text_to_image import TextToImage
from training.components import ConfigError
from training.encoder import Encoder

NAMES = ("red", "green", "blue")


class Colours(Source):
    """Picture i is full of colour i, but the last one, which is labelled wrongly."""

    name, fields, fingerprint = "colours", ("image", "label", "caption"), ""
    class_names = NAMES

    def __len__(self):
        return 7

    def example(self, index, fields):
        label = 1 if index == 6 else index % 3
        return {"image": picture(index % 3), "label": label, "caption": f"a {NAMES[label]}"}


class Eyes(Encoder):
    """Images and texts lie at the colour that they are, or name."""

    def __init__(self):
        data = types.SimpleNamespace(image_size=4, channels=3)
        vars(self).update(config=types.SimpleNamespace(data=data))

    def images(self, images):
        assert images.shape[1:] == (4, 4, 3)
        return images.mean((1, 2)) / 255

    def captions(self, texts):
        return np.array([[float(name in text) for name in NAMES] for text in texts])


class Pipeline(TextToImage):
    """Nothing but its CLIP."""

    def __init__(self):
        vars(self).update(clip=Eyes())


def picture(colour, side=4):
    image = np.zeros((side, side, 3), np.uint8)
    image[..., colour] = 255
    return image


def measured(draw, templates=("a {}", "one {}")):
    metric = PictureZeroShot(templates=templates)
    return metric.measure(Pipeline(), draw, Colours(), range(7), None)


def test_zero_shot_is_of_the_pictures_and_of_the_real_ones():
    def draw(captions):
        # The first two as captioned, all others red; of another size than CLIP's.
        return np.stack([picture(k if k < 2 else 0, side=8) for k in range(len(captions))])

    found = measured(draw)
    assert found["real"] == pytest.approx(6 / 7)
    # Of labels 0 1 2 0 1 2 1 and pictures 0 1 0 0 0 0 0.
    assert found["accuracy"] == pytest.approx(3 / 7)
    assert (found["count"], found["classes"]) == (7, 3)


def test_zero_shot_needs_names_of_classes(monkeypatch):
    monkeypatch.setattr(Colours, "class_names", ())
    with pytest.raises(ConfigError, match="zero_shot needs names of classes; colours has none"):
        measured(lambda captions: np.zeros((7, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"each must have a \{\}"):
        PictureZeroShot(templates=("a picture",))
