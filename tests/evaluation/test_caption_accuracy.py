import functools
import io

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import input_pipeline
from evaluation import scenes
from evaluation.caption_accuracy import SceneAccuracy, caption_accuracy, parse
from input_pipeline.sources import shapes_render
from input_pipeline.sources.base import Source
from training.components import ConfigError

COUNT = 200


@pytest.fixture(scope="module")
def real():
    """Of each split and size: images and scenes."""

    @functools.cache
    def make(split, size, count=COUNT):
        scenes = [shapes_render.scene(split, index) for index in range(count)]
        return np.stack([shapes_render.render(scene, size) for scene in scenes]), scenes

    return make


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """Reading takes the time here, and the same images are asked about many things."""
    read, seen = scenes.read, {}

    def remembered(images):
        key = images.shape, images.tobytes()
        if key not in seen:
            seen[key] = read(images)
        return seen[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "read", remembered)
        yield


@pytest.mark.parametrize("split", shapes_render.SPLITS)
@pytest.mark.parametrize("size", [32, 64])
def test_real_images_are_read_as_captioned(real, split, size):
    images, drawn = real(split, size)
    result = caption_accuracy(images, [scene.caption for scene in drawn])
    assert result["all"] >= 0.99
    assert set(result["attributes"]) == set(drawn[0].attributes)


@pytest.mark.parametrize("split", shapes_render.SPLITS)
def test_captions_are_parsed_into_the_attributes_of_the_source(split):
    for index in range(500):
        scene = shapes_render.scene(split, index)
        assert parse(scene.caption) == scene.attributes


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a small red circle",
        "a small pink circle on a grey background",
        "a small red circle on the left above a large blue star on a grey background",
        "a small red circle on a grey background.",
    ],
)
def test_other_captions_are_refused(caption):
    with pytest.raises(ValueError, match="none of the source 'shapes'"):
        parse(caption)


OTHER = {
    "shape": shapes_render.SHAPES,
    "colour": tuple(shapes_render.COLOURS),
    "size": tuple(shapes_render.SIZES),
    "background": tuple(shapes_render.BACKGROUNDS),
}


@pytest.mark.parametrize(
    "name", ["shape", "colour", "size", "background", "position", "second_shape", "second_colour"]
)
def test_a_wrong_attribute_is_found_out_and_no_other(real, name):
    images, drawn = real("test", 32, 120)
    wrong = []
    for scene in drawn:
        told = dict(scene.attributes)
        if name == "position":
            opposite = scenes.RELATIONS | {"left": "right", "right": "left", "top": "bottom"}
            told[name] = opposite.get(told[name], "top")
        elif told[name] != "none":
            values = OTHER[name.removeprefix("second_")]
            told[name] = values[(values.index(told[name]) + 1) % len(values)]
        wrong.append(told)
    changed = np.array([w != scene.attributes for w, scene in zip(wrong, drawn, strict=True)])
    result = caption_accuracy(images, wrong)
    # Two objects of the same kind are still as told when left and right are swapped.
    assert result["all"] == pytest.approx(1 - changed.mean(), abs=0.02)
    assert result["attributes"][name] < 0.03
    assert all(value > 0.97 for key, value in result["attributes"].items() if key != name)


def test_attributes_that_are_not_there(real):
    images, drawn = real("test", 32, 60)
    lone = [n for n, scene in enumerate(drawn) if len(scene.things) == 1]
    told = [dict(drawn[n].attributes, position="left of", second_shape="star") for n in lone]
    result = caption_accuracy(images[lone], told)
    assert result["all"] == 0
    assert result["attributes"]["second_shape"] == 0
    with pytest.raises(ValueError, match="give one each"):
        caption_accuracy(images, ["a small red circle on a grey background"])


def test_noise_shows_nothing():
    noise = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), np.uint8)
    caption = "a small red circle on a grey background"
    result = caption_accuracy(noise, [caption] * 50)
    assert result["all"] == 0
    assert result["unknown"]["background"] > 0.9


class Drawn(Source):
    """The source `shapes`, drawn and not read from disk."""

    name, fields, fingerprint = "shapes", ("image", "label"), ""

    def __init__(self, size: int, split: str):
        self.size, self.split = size, split

    def __len__(self):
        return 80

    def example(self, index, fields):
        scene = shapes_render.scene(self.split, index)
        file = io.BytesIO()
        Image.fromarray(shapes_render.render(scene, self.size)).save(file, "png")
        return {"image": file.getvalue(), "label": scene.label}


class TestSceneAccuracy:
    CONFIG = ConfigDict(
        {"data": {"source": "shapes(size=32, split='train')", "image_size": 32, "channels": 3}}
    )

    @pytest.fixture(autouse=True)
    def drawn(self, monkeypatch, real):
        monkeypatch.setitem(input_pipeline.SOURCES, "shapes", Drawn)
        images, drawn = real("test", 32, 80)
        return images, np.array([scene.label for scene in drawn])

    def test_real_images(self, drawn):
        result = SceneAccuracy()(*drawn, self.CONFIG)
        assert result["accuracy"] == result["reader_accuracy"] >= 0.99
        assert result["reader_count"] == len(drawn[0])
        assert result["objects"]["none"] == result["objects"]["more"] == 0
        assert result["objects"]["one"] + result["objects"]["two"] == 1

    def test_wrong_labels(self, drawn):
        images, labels = drawn
        colour = labels // 6 * 6 + (labels + 1) % 6
        result = SceneAccuracy()(images, colour, self.CONFIG)
        assert result["shape"] >= 0.99
        assert result["colour"] < 0.2  # where the second object has the colour
        assert result["accuracy"] < 0.1
        result = SceneAccuracy()(images, (labels + 6) % 36, self.CONFIG)
        assert result["colour"] >= 0.99
        assert result["shape"] < 0.2

    def test_labels_are_needed(self, drawn):
        with pytest.raises(ConfigError, match="these have none"):
            SceneAccuracy()(drawn[0], None, self.CONFIG)


def test_scene_accuracy_is_of_shapes():
    config = ConfigDict({"data": {"source": "digits(split='train')"}})
    with pytest.raises(ConfigError, match="'shapes"):
        SceneAccuracy()(np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, int), config)
