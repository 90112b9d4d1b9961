import types

import numpy as np
import pytest

from evaluation import METRICS
from evaluation.retrieval import Retrieval, ZeroShot, recall
from input_pipeline.sources.base import Source
from training.components import ConfigError
from training.encoder import Encoder

NAMES = ("red circle", "blue square", "green star")


class Scenes(Source):
    """Eight pictures; the last two have the caption of the first."""

    name, fields, fingerprint = "scenes", ("image", "label", "caption", "place"), ""
    class_names = NAMES
    captions = ("a red circle", "a blue square", "a green star", "one", "two", "three")

    def __len__(self):
        return 8

    def example(self, index, fields):
        caption = self.captions[index % 6] if index < 6 else self.captions[0]
        place = "left" if index < 3 else "right"
        return {"label": index % 3, "caption": caption, "place": place}


class Fake(Encoder):
    """An encoder whose embeddings are given."""

    def __init__(self, images, texts):
        data = types.SimpleNamespace(source="scenes(split='train')")
        config = types.SimpleNamespace(data=data)
        vars(self).update(config=config, given=images, spell=texts)

    def source(self, source, fields=(), count=0, seed=0):
        rows = [source.example(k, fields) for k in range(count or len(source))]
        found = {field: np.array([row[field] for row in rows]) for field in fields}
        return found | {"embedding": self.given[: len(rows)]}

    def captions(self, texts):
        return np.stack([self.spell(text) for text in texts])


@pytest.fixture(autouse=True)
def scenes(monkeypatch):
    made = []

    def scenes(split: str = "train"):
        made.append(split)
        return Scenes()

    monkeypatch.setattr("input_pipeline.SOURCES", {"scenes": scenes})
    return made


def one_hot(k):
    return np.eye(6, dtype=np.float32)[k]


def by_caption(text):
    return one_hot(Scenes.captions.index(text))


def test_recall_counts_the_answers_before_the_first_right_one():
    similarity = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 3.0, 3.0]])
    right = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0]], bool)
    # A tie is no merit: the last query's right answer comes after both others.
    got = recall(similarity, right, (1, 2, 3))
    assert got == pytest.approx({"R@1": 1 / 3, "R@2": 1 / 3, "R@3": 1.0})
    # Any right answer will do.
    assert recall(similarity[:1], np.array([[0, 1, 1]], bool), (1, 2)) == {"R@1": 0.0, "R@2": 1.0}
    assert recall(np.zeros((3, 3)), np.eye(3, dtype=bool), (1, 3)) == {"R@1": 0.0, "R@3": 1.0}


def test_images_of_one_caption_are_right_alike(scenes):
    own = [0, 1, 2, 3, 4, 5, 0, 0]
    encoder = Fake(np.stack([one_hot(k) for k in own]), by_caption)
    got = Retrieval(split="test", count=0, ks=(1,))(encoder)
    assert got == {
        "image_to_text": {"R@1": 1.0},
        "text_to_image": {"R@1": 1.0},
        "images": 8,
        "captions": 6,
    }
    assert scenes == ["test"]
    # One image at the place of another caption.
    own[1] = 2
    encoder = Fake(np.stack([one_hot(k) for k in own]), by_caption)
    got = Retrieval(count=0, ks=(1, 6))(encoder)
    assert got["image_to_text"] == {"R@1": 7 / 8, "R@6": 1.0}
    # The captions "a blue square" (nothing is near) and "a green star" (shares its place).
    assert got["text_to_image"]["R@1"] == pytest.approx(4 / 6)


def test_zero_shot_is_the_mean_over_templates():
    def text(caption):
        k = next(k for k, name in enumerate(NAMES) if name in caption)
        return one_hot(k) if caption.startswith("a ") else one_hot(5)

    labels = np.array([0, 1, 2, 0, 1, 2, 1, 1])
    encoder = Fake(np.stack([one_hot(k) for k in labels]), text)
    templates = ("a {}", "the {} there")
    got = ZeroShot(templates=templates)(encoder)
    # Of the last two images the label is 0 and 1.
    assert got == {"accuracy": 7 / 8, "count": 8, "classes": 3}
    left = ZeroShot(templates=templates, only=("place", "left"))(encoder)
    assert left == {"accuracy": 1.0, "count": 3, "classes": 3}


def test_mistakes():
    with pytest.raises(ValueError, match="templates"):
        ZeroShot(templates=("a shape",))
    with pytest.raises(ValueError, match="only"):
        ZeroShot(only=("place",))
    encoder = Fake(np.zeros((8, 6), np.float32), by_caption)
    with pytest.raises(ConfigError, match="no example of scenes has"):
        ZeroShot(only=("place", "top"))(encoder)
    with pytest.raises(ConfigError, match="zero_shot: fields: scenes has no 'size'"):
        ZeroShot(only=("size", "small"))(encoder)
    assert {METRICS[name].needs for name in ("retrieval", "zero_shot")} == {"encoder"}
