import io

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from evaluation import scenes
from evaluation.caption_accuracy import caption_accuracy
from input_pipeline.sources import shapes_render

COUNT = 150


@pytest.fixture(scope="module")
def drawn():
    described = [shapes_render.scene("test", index) for index in range(COUNT)]
    images = np.stack([shapes_render.render(scene, 32) for scene in described])
    return images, [scene.attributes for scene in described]


def to_uint8(x):
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def noise(sigma):
    return lambda x: to_uint8(x + np.random.default_rng(0).normal(0, sigma, x.shape))


def jpeg(images):
    out = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "jpeg", quality=75)
        out.append(np.asarray(Image.open(file)))
    return np.stack(out)


@pytest.mark.parametrize(
    ("spoil", "least"),
    [
        (noise(8), 0.98),
        (noise(16), 0.97),
        (lambda x: to_uint8(ndimage.gaussian_filter(x.astype(float), (0, 0.5, 0.5, 0))), 0.98),
        (lambda x: to_uint8(x.reshape(-1, 16, 2, 16, 2, 3).astype(float).mean((2, 4))), 0.95),
        # The colours of JPEG files have half the resolution: small objects suffer.
        (jpeg, 0.75),
    ],
    ids=["noise 8", "noise 16", "blur", "16 px", "jpeg"],
)
def test_spoilt_images_are_read(drawn, spoil, least):
    images, attributes = drawn
    assert caption_accuracy(spoil(images), attributes)["all"] >= least


def scene(*things, background="white", size=32):
    things = tuple(shapes_render.Thing(*thing) for thing in things)
    return shapes_render.render(shapes_render.Scene(things, "", background), size)[None]


def test_position_and_extent():
    (reading,) = scenes.read(scene(("star", "red", "small", 0.3, 0.71)))
    (thing,) = reading.things
    assert (thing.x, thing.y) == pytest.approx((0.3, 0.71), abs=0.015)
    assert thing.radius == 0.13
    assert reading.attributes[0]["position"] == "unknown"  # a corner


def test_two_objects_have_two_true_descriptions():
    image = scene(("star", "red", "small", 0.25, 0.5), ("circle", "blue", "large", 0.75, 0.5))
    one, two = sorted(scenes.read(image)[0].attributes, key=lambda told: told["position"])
    assert (one["position"], one["colour"], one["second_colour"]) == ("left of", "red", "blue")
    assert (two["position"], two["colour"], two["second_colour"]) == ("right of", "blue", "red")
    assert (two["size"], two["second_shape"]) == ("large", "star")


def test_three_objects_are_no_scene():
    image = scene(
        ("star", "red", "small", 0.2, 0.2),
        ("circle", "blue", "small", 0.8, 0.2),
        ("cross", "green", "small", 0.5, 0.8),
    )
    (reading,) = scenes.read(image)
    assert len(reading.things) == 3
    (told,) = reading.attributes
    assert told.pop("background") == "white"
    assert set(told.values()) == {"unknown"}


def test_unknown_where_it_cannot_tell():
    empty = np.full((1, 32, 32, 3), 128, np.uint8)
    (told,) = scenes.read(empty)[0].attributes
    assert told.pop("background") == "grey"
    assert set(told.values()) == {"unknown"}

    pink = Image.new("RGB", (32, 32), (255, 180, 200))
    ImageDraw.Draw(pink).ellipse((9, 9, 23, 23), fill=(20, 230, 230))
    (told,) = scenes.read(np.asarray(pink)[None])[0].attributes
    assert (told["background"], told["colour"]) == ("unknown", "unknown")
    assert (told["shape"], told["size"]) == ("circle", "large")

    angle = Image.new("RGB", (32, 32), "white")
    corners = [(8, 8), (11, 8), (11, 21), (24, 21), (24, 24), (8, 24)]
    ImageDraw.Draw(angle).polygon(corners, fill=shapes_render.COLOURS["blue"])
    (reading,) = scenes.read(np.asarray(angle)[None])
    assert all(thing.shape == "unknown" for thing in reading.things)


def test_sizes_that_cannot_be_read_are_refused():
    with pytest.raises(ValueError, match="resize them first"):
        scenes.read(np.zeros((1, 48, 48, 3), np.uint8))
    with pytest.raises(ValueError, match="8 to 32"):
        scenes.read(np.zeros((1, 4, 4, 3), np.uint8))
