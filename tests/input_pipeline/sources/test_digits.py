import pickle

import numpy as np
import pytest
from sklearn.datasets import load_digits

from input_pipeline.sources.digits import digits


def test_splits_part_the_data():
    whole, train, test = (digits(split) for split in ("all", "train", "test"))
    assert len(whole) == len(train) + len(test) == 1797
    rows = {source.images[i].tobytes() for source in (train, test) for i in range(len(source))}
    assert rows == {image.tobytes() for image in whole.images}


def test_split_is_stratified():
    counts = [np.bincount(digits(split).labels, minlength=10) for split in ("all", "test")]
    np.testing.assert_allclose(counts[1], counts[0] / 5, atol=0.5)


def test_pixels_are_those_of_scikit_learn():
    data = load_digits()
    source = digits("all")
    assert source.images.shape == (1797, 8, 8, 1)
    assert source.images.min() == 0
    assert source.images.max() == 255
    np.testing.assert_allclose(source.images[..., 0] * (16 / 255), data.images, atol=0.5 / 15.9)
    np.testing.assert_array_equal(source.labels, data.target)


def test_captions_name_the_digit():
    source = digits("test")
    assert source.num_classes == 10
    for example in (source[i] for i in range(50)):
        assert example["caption"].endswith(source.class_names[example["label"]])
    assert len({source[i]["caption"].rpartition(" ")[0] for i in range(3)}) == 3


def test_fingerprint_tells_splits_apart_and_survives_pickling():
    prints = {digits(split).fingerprint for split in ("all", "train", "test")}
    assert len(prints) == 3
    assert pickle.loads(pickle.dumps(digits())).fingerprint == digits().fingerprint


def test_unknown_split():
    with pytest.raises(ValueError, match="'valid' is none of 'train', 'test', 'all'"):
        digits("valid")
