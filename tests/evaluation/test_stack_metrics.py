"""Metrics of a stack's pictures, before a CLIP whose eyes are known."""

import types

import numpy as np
import pytest

import evaluation.stack
from configs import unclip_shapes
from evaluation import stack_metrics
from evaluation.stack_metrics import DecodedQuality, PictureZeroShot
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


class Three(Colours):
    """One picture of each colour: embeddings at right angles, captions at the same places."""

    def __len__(self):
        return 3


def decoded(order, side=4):
    def draw(captions):
        assert captions == [f"a {name}" for name in NAMES]
        return np.stack([picture(colour, side) for colour in order])

    return DecodedQuality().measure(Pipeline(), draw, Three(), range(3), None)


def test_decoded_quality_of_the_true_pictures_is_perfect():
    found = decoded((0, 1, 2), side=8)
    assert found["cosine"] == found["cosine_to_text"] == found["text_cosine"] == 1
    assert found["cosine_unrelated"] == found["text_cosine_unrelated"] == 0
    assert found["recall"] == found["text_recall"] == {"1": 1, "5": 1, "10": 1}
    assert (found["median_rank"], found["count"]) == (0, 3)


def test_decoded_quality_of_exchanged_pictures_can_be_counted():
    found = decoded((1, 0, 2))
    # One picture of three is right. The two others lie at each other's place, at right angles to
    # their own, as near to that as to the third.
    assert found["cosine"] == found["cosine_to_text"] == pytest.approx(1 / 3)
    assert found["cosine_unrelated"] == pytest.approx(2 / 6)
    assert found["recall"] == {"1": pytest.approx(1 / 3), "5": 1, "10": 1}
    assert found["median_rank"] == 2
    assert found["text_cosine"] == found["text_recall"]["1"] == 1


def test_a_split_that_is_not_there_is_refused_before_anything_is_drawn():
    config = unclip_shapes.get_config("smoke")
    specs = ["caption_accuracy(split='test')", "zero_shot(split='nope')"]
    message = (
        r"^config.evaluate.metrics = .zero_shot\(split='nope'\).: config.pairs = .*: "
        "split: 'nope' is none of 'compositional', 'test', 'train'"
    )
    with pytest.raises(ConfigError, match=message):
        evaluation.stack.build(specs, config)
    assert list(evaluation.stack.build(specs[:1], config)) == specs[:1]


def test_more_than_the_split_has_is_told(monkeypatch, caplog):
    monkeypatch.setattr(stack_metrics, "captioned", lambda config, split: Three())

    def measured(count):
        caplog.clear()
        config = types.SimpleNamespace(generate=None)
        draw = lambda captions: np.stack([picture(k) for k in range(len(captions))])  # noqa: E731
        return DecodedQuality(count=count)(Pipeline(), draw, config)["count"], caplog.text

    for count in (0, 3):
        assert measured(count) == (3, "")
    seen, told = measured(4)
    assert seen == 3
    assert "DecodedQuality: count=4, and colours has 3 examples: all are measured" in told
