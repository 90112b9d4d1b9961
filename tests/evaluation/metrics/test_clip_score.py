import numpy as np
import pytest

from evaluation.metrics import clip_score
from tests.golden.evaluation.sets import embeddings


def test_it_is_the_mean_of_cosines_above_zero():
    images, captions = (x[:200] for x in embeddings())
    cosines = [x @ y for x, y in zip(images, captions, strict=True)]
    assert min(cosines) < 0
    scores = [100 * max(c, 0.0) for c in cosines]
    scale = np.linspace(0.1, 9.0, 200)[:, None]
    found = clip_score(scale * images, captions)
    np.testing.assert_allclose(found.mean, np.mean(scores), rtol=1e-12)
    np.testing.assert_allclose(found.standard_error, np.std(scores, ddof=1) / np.sqrt(200))
    assert found.count == 200


def test_pairs_by_hand():
    images = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [1.0, 1.0]], np.float16)
    captions = np.array([[5.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]], np.float16)
    # 100, 0, 0 in place of -100, and 100 / sqrt(2).
    assert clip_score(images, captions).mean == pytest.approx((100 + 100 / np.sqrt(2)) / 4)


def test_what_is_wrong_is_told():
    with pytest.raises(ValueError, match="3 images and 2 captions; must be pairs"):
        clip_score(np.eye(3), np.eye(3)[:2])
    with pytest.raises(ValueError, match="images have 3 dimensions and captions 2"):
        clip_score(np.eye(3), np.ones((3, 2)))
    with pytest.raises(ValueError, match="captions: row 1 is zero"):
        clip_score(np.eye(2), np.diag([1.0, 0.0]))
    with pytest.raises(ValueError, match="images: row 0 has nan"):
        clip_score(np.full((2, 2), np.nan), np.eye(2))
