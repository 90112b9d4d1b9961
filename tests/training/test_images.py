import numpy as np
import pytest
from PIL import Image

from training.images import grid, save_png


def test_grid_enlarges_to_exact_pixels():
    images = np.array([[[[1]]], [[[2]]], [[[3]]]], np.uint8)
    background = 208
    expected = np.full((2 * 4 + 2, 2 * 4 + 2), background)
    expected[2:4, 2:4], expected[2:4, 6:8], expected[6:8, 2:4] = 1, 2, 3
    np.testing.assert_array_equal(grid(images, columns=2, scale=2)[..., 0], expected)


@pytest.mark.parametrize(("side", "scale"), [(8, 8), (28, 3), (64, 1), (256, 1)])
def test_small_images_are_made_readable(side, scale):
    sheet = grid(np.zeros((2, side, side, 3), np.uint8))
    assert sheet.shape == (side * scale + 4, 2 * (side * scale + 2) + 2, 3)


def test_default_is_square():
    sheet = grid(np.zeros((64, 8, 8, 1), np.uint8), scale=1)
    assert sheet.shape == (8 * 10 + 2, 8 * 10 + 2, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_labels_are_drawn_below_and_leave_the_images(channels):
    images = np.full((4, 8, 8, channels), 200, np.uint8)
    plain = grid(images, labels=[" "] * 4)
    labelled = grid(images, labels=["0", "1", "2", "3"])
    assert labelled.shape == plain.shape
    assert (labelled != plain).any()
    assert (labelled == 200).sum() >= images.size * 8 * 8
    assert (labelled[2:66, 2:66] == 200).all()


def test_wrong_arguments():
    images = np.zeros((2, 8, 8, 1), np.uint8)
    with pytest.raises(ValueError, match="1 labels for 2 images"):
        grid(images, labels=["0"])
    with pytest.raises(ValueError, match="at least one"):
        grid(images[:0])


@pytest.mark.parametrize("channels", [1, 3])
def test_png_is_lossless(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    save_png(tmp_path / "new" / "image.png", image)
    read = np.asarray(Image.open(tmp_path / "new" / "image.png")).reshape(image.shape)
    np.testing.assert_array_equal(read, image)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["image.png"]
