import numpy as np
import pytest

from evaluation import prior

RANDOM = np.random.RandomState(0)
IMAGES = RANDOM.standard_normal((50, 32)).astype("float32")


def test_a_perfect_prediction():
    values = prior.quality(np.stack([5.0 * IMAGES] * 2), IMAGES, IMAGES[::-1])
    assert values["cosine"] == pytest.approx(1.0)
    assert values["recall"] == {"1": 1.0, "5": 1.0, "10": 1.0}
    assert values["median_rank"] == 0
    assert values["diversity"] == pytest.approx(0.0, abs=1e-9)
    assert values["text_recall"]["1"] == 0.0


def test_the_mean_embedding_shows_as_such():
    """It is as near to the images of other captions, and finds nothing."""
    images = IMAGES + 2.0
    mean = np.broadcast_to(images.mean(0), images.shape)
    values = prior.quality(mean[None], images, images)
    assert values["cosine"] > 0.8
    assert values["cosine"] == pytest.approx(values["cosine_unrelated"], abs=1e-6)
    assert values["recall"]["10"] == pytest.approx(0.2, abs=0.02)


def test_equal_predictions_gain_nothing_by_ties():
    same = np.ones_like(IMAGES)
    assert prior.ranks(IMAGES, same).min() == 49


def test_unrelated_is_the_mean_off_the_diagonal():
    other = RANDOM.standard_normal((50, 32))
    cosines = prior.unit(IMAGES) @ prior.unit(other).T
    off = cosines[~np.eye(50, dtype=bool)].mean()
    assert prior.unrelated_cosine(IMAGES, other) == pytest.approx(off, abs=1e-12)
    np.testing.assert_allclose(prior.cosine(IMAGES, other), np.diag(cosines), atol=1e-12)


def test_ranks_by_hand_and_in_parts(monkeypatch):
    predicted = IMAGES + 3.0 * RANDOM.standard_normal(IMAGES.shape)
    cosines = prior.unit(predicted) @ prior.unit(IMAGES).T
    by_hand = [np.sum(row > row[i]) for i, row in enumerate(cosines)]
    np.testing.assert_array_equal(prior.ranks(predicted, IMAGES), by_hand)
    monkeypatch.setattr(prior, "_ROWS", 7)
    np.testing.assert_array_equal(prior.ranks(predicted, IMAGES), by_hand)
    assert prior.recall(np.array([0, 1, 5, 9]), 5) == 0.5


def test_diversity_is_the_mean_over_pairs():
    draws = RANDOM.standard_normal((3, 20, 4))
    pairs = [(0, 1), (0, 2), (1, 2)]
    by_hand = np.mean([1 - prior.cosine(draws[a], draws[b]).mean() for a, b in pairs])
    assert prior.diversity(draws) == pytest.approx(by_hand, abs=1e-12)
    with pytest.raises(ValueError, match="two or more"):
        prior.diversity(draws[:1])
