import types

import numpy as np
import pytest
from ml_collections import ConfigDict

import input_pipeline
from evaluation.class_accuracy import ClassAccuracy
from training.components import ConfigError


@pytest.fixture(scope="module")
def config():
    return ConfigDict({"data": {"source": "digits(split='train')", "image_size": 8, "channels": 1}})


@pytest.fixture(scope="module")
def real():
    source = input_pipeline.SOURCES["digits"](split="test")
    examples = [source[i] for i in range(len(source))]
    return np.stack([e["image"] for e in examples]), np.array([e["label"] for e in examples])


def test_real_images_score_as_the_classifier_itself(config, real):
    result = ClassAccuracy()(*real, config)
    assert result["accuracy"] == result["classifier_accuracy"] > 0.97
    assert result["count"] == result["classifier_held_out_count"] == len(real[0])
    assert result["classifier_train_count"] == 1797 - len(real[0])


def test_wrong_classes_are_found_out(config, real):
    images, labels = real
    shown = np.where(labels == 3, 8, labels)  # asked for an 8, the model draws a 3
    result = ClassAccuracy()(images, shown, config)
    eights, threes = (labels == 8).sum(), (labels == 3).sum()
    assert set(result["per_class"]) == {"0", "1", "2", "4", "5", "6", "7", "8", "9"}
    assert result["per_class"]["8"] == pytest.approx(eights / (eights + threes), abs=0.05)
    assert all(result["per_class"][name] > 0.9 for name in "012456")
    assert ClassAccuracy()(images, (labels + 1) % 10, config)["accuracy"] < 0.02


def test_noise_is_no_digit(config):
    noise = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 1), np.uint8)
    assert ClassAccuracy()(noise, np.arange(200) % 10, config)["accuracy"] < 0.25


def test_splits_may_be_swapped_and_cut(config, real):
    result = ClassAccuracy(train="test", held_out="train", max_examples=300)(*real, config)
    assert result["classifier_train_count"] == result["classifier_held_out_count"] == 300
    assert 0.8 < result["classifier_accuracy"] < 1


def test_labels_are_needed(config, real, monkeypatch):
    with pytest.raises(ConfigError, match="these have none"):
        ClassAccuracy()(real[0], None, config)
    plain = types.SimpleNamespace(num_classes=0, name="plain")
    monkeypatch.setitem(input_pipeline.SOURCES, "digits", lambda split: plain)
    with pytest.raises(ConfigError, match="plain has none"):
        ClassAccuracy()(*real, config)
