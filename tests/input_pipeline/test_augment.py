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
