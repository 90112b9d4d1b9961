import io
import pathlib

import numpy as np
import pytest
from PIL import Image

from input_pipeline.images import BadImageError, to_array

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "center_crop.npz"


def encoded(image, kind="png", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_crop_and_resize_equal_adm():
    golden = np.load(GOLDEN)
    names = [name.removeprefix("in_") for name in golden if name.startswith("in_")]
    assert len(names) == 5
    for name in names:
        expected = golden[f"out_{name}"]
        actual = to_array(golden[f"in_{name}"], expected.shape[0], 3)
        np.testing.assert_array_equal(actual, expected)


def test_image_of_the_right_size_is_untouched():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(to_array(pixels, 8, 3), pixels)
    np.testing.assert_array_equal(to_array(encoded(Image.fromarray(pixels)), 8, 3), pixels)


def test_resizing_is_antialiased():
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 255
    small = to_array(stripes, 8, 1)
    assert np.abs(small.astype(int) - 127).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_modes_keep_their_colour(mode):
    # 1-bit images hold black and white only.
    colour = (255, 255, 255) if mode == "1" else (100, 100, 100)
    image = Image.new("RGB", (4, 4), colour)
    image = image.quantize(4) if mode == "P" else image.convert("L").convert(mode)
    data = encoded(image, {"CMYK": "tiff", "YCbCr": "jpeg"}.get(mode, "png"))
    for channels in (1, 3):
        pixels = to_array(data, 4, channels)
        assert pixels.shape == (4, 4, channels)
        assert np.abs(pixels.astype(int) - colour[0]).max() <= 2


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_16_bit_grey_is_scaled(kind):
    values = np.array([[0, 257, 32768, 65535]] * 4, np.uint16)
    pixels = to_array(encoded(Image.fromarray(values), kind), 4, 1)
    np.testing.assert_array_equal(pixels[0, :, 0], [0, 1, 128, 255])


def test_transparent_parts_become_white():
    image = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    image.putpixel((0, 0), (10, 20, 30, 255))
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([0, 0, 0])
    pixels = to_array(encoded(image), 2, 3)
    assert pixels[0, 0].tolist() == [10, 20, 30]
    assert pixels[1, 1].tolist() == [255, 255, 255]
    assert to_array(encoded(palette, transparency=0), 2, 3).min() == 255


def test_colour_becomes_grey_by_luminance():
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    assert to_array(encoded(red), 2, 1)[0, 0, 0] == round(0.299 * 255)


def test_photograph_is_turned_upright():
    image = Image.new("L", (2, 2), 0)
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    pixels = to_array(encoded(image, exif=exif), 2, 1)
    assert pixels[1, 1, 0] == 255
    assert pixels[0, 0, 0] == 0


def test_broken_images_are_named_bad():
    whole = encoded(Image.effect_noise((32, 32), 50))
    jpeg = encoded(Image.effect_noise((32, 32), 50), "jpeg")
    floats = encoded(Image.new("F", (2, 2)), "tiff")
    flipped = whole[:60] + bytes([whole[60] ^ 255]) + whole[61:]
    bad = (b"", b"not an image", whole[:-200], whole[:20], jpeg[: len(jpeg) // 2], floats, flipped)
    for data in bad:
        with pytest.raises(BadImageError, match=r"\w"):
            to_array(data, 8, 3)
