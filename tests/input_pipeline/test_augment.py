import numpy as np
import pytest

from input_pipeline import AUGMENTATIONS


def test_flip_mirrors_left_and_right():
    image = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    rng = np.random.default_rng(0)
    flipped = AUGMENTATIONS["flip"](probability=1.0)(image, rng)
    np.testing.assert_array_equal(flipped, np.fliplr(image))
    np.testing.assert_array_equal(AUGMENTATIONS["flip"](probability=0.0)(image, rng), image)


def test_flip_takes_half_of_the_images():
    image = np.arange(2, dtype=np.uint8).reshape(1, 2, 1)
    rng = np.random.default_rng(0)
    flip = AUGMENTATIONS["flip"]()
    flipped = sum(int(flip(image, rng)[0, 0, 0]) for _ in range(1000))
    assert 430 < flipped < 570  # 4.4 standard deviations


def test_flip_checks_its_argument():
    with pytest.raises(ValueError, match=r"probability must be between 0 and 1, not 2\.0"):
        AUGMENTATIONS["flip"](probability=2.0)


def pixels(size=16, channels=3):
    return np.random.default_rng(0).integers(0, 256, (size, size, channels), dtype=np.uint8)


def test_shifted_crop_is_a_window_of_the_mirrored_image():
    image = pixels()
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (16, 16, 3))[:, :, 0]
    rng = np.random.default_rng(0)
    crop = AUGMENTATIONS["random_crop"](scale=(1.0, 1.0), pad=4)
    seen = set()
    for _ in range(300):
        same = (windows == crop(image, rng)).all((2, 3, 4))
        assert same.sum() == 1
        seen.add(tuple(np.argwhere(same)[0].tolist()))
    # Of the 81 places 300 draws miss 2 on average.
    assert len(seen) > 70
    assert {row for row, _ in seen} == {column for _, column in seen} == set(range(9))


@pytest.mark.parametrize("channels", [1, 3])
def test_scaled_crop_is_a_piece_resized(channels):
    # A ramp keeps its values when it is resized: each pixel tells where it was.
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None] * 4, (64, 64, channels))
    crop = AUGMENTATIONS["random_crop"](scale=(0.5, 0.75))
    rng = np.random.default_rng(0)
    sides, starts = [], []
    for _ in range(200):
        piece = crop(ramp, rng)
        assert piece.shape == ramp.shape
        assert piece.dtype == np.uint8
        first, last = piece[16, 0, 0] / 4, piece[48, 0, 0] / 4
        sides.append(2 * (last - first))
        starts.append((first + last) / 2 - sides[-1] / 2)
    assert min(sides) == pytest.approx(32, abs=1)
    assert max(sides) == pytest.approx(48, abs=1)
    assert min(starts) < 1
    assert max(np.add(starts, sides)) > 62


def test_whole_crop_changes_nothing_and_follows_the_generator():
    image = pixels()
    whole = AUGMENTATIONS["random_crop"](scale=(1.0, 1.0))
    np.testing.assert_array_equal(whole(image, np.random.default_rng(0)), image)
    crop = AUGMENTATIONS["random_crop"](scale=(0.5, 1.0), pad=2)
    first, second, other = (crop(image, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": (0.0, 1.0)}, r"0 < low <= high <= 1: \(0\.0, 1\.0\)"),
        ({"scale": (0.9, 0.8)}, "0 < low <= high <= 1"),
        ({"scale": (0.9, 1.1)}, "0 < low <= high <= 1"),
        ({"pad": -1}, "pad must be 0 or more pixels, not -1"),
    ],
)
def test_random_crop_checks_its_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        AUGMENTATIONS["random_crop"](**arguments)


def test_padding_wider_than_the_image_is_refused():
    crop = AUGMENTATIONS["random_crop"](pad=16)
    with pytest.raises(ValueError, match="pad = 16 must be less than the image's 16 pixels"):
        crop(pixels(), np.random.default_rng(0))
