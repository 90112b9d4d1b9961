import json
from pathlib import Path

import numpy as np
import pytest

from evaluation.metrics import inception_score
from tests.golden.evaluation.sets import logits

GOLDEN = Path(__file__).parents[2] / "golden" / "evaluation" / "metrics.json"
EXPECTED = json.loads(GOLDEN.read_text())["inception_score"]


def test_as_torch_fidelity_has_it():
    found = inception_score(logits())
    np.testing.assert_allclose(found.mean, EXPECTED["inception_score_mean"], rtol=1e-12)
    np.testing.assert_allclose(found.std, EXPECTED["inception_score_std"], rtol=1e-10)
    assert found.parts == 10


@pytest.mark.parametrize("size", [100, 300])
def test_as_guided_diffusion_has_it(size):
    """1003 examples: the last part is smaller, and counts as much as the others."""
    found = inception_score(logits(), split_size=size, shuffle=None)
    np.testing.assert_allclose(found.mean, EXPECTED["guided-diffusion"][str(size)], rtol=1e-12)
    assert found.parts == -(-1003 // size)


def test_its_bounds():
    """Alike predictions give 1; sure ones, of all classes equally, the number of classes."""
    assert inception_score(np.ones((50, 7))).mean == pytest.approx(1.0, abs=1e-12)
    sure = np.tile(1e4 * np.eye(5), (20, 1))
    found = inception_score(sure, splits=2, shuffle=None)
    assert found.mean == pytest.approx(5.0, rel=1e-12)
    assert found.std == pytest.approx(0.0, abs=1e-12)


def test_order_counts_only_where_it_is_kept():
    x = np.repeat(10.0 * np.eye(4), 25, axis=0)
    assert inception_score(x, splits=4, shuffle=None).mean == pytest.approx(1.0, abs=1e-3)
    assert inception_score(x, splits=4).mean > 3.0
    assert inception_score(x, splits=4, shuffle=1).mean != inception_score(x, splits=4).mean
    shifted = x + np.arange(100)[:, None]
    np.testing.assert_allclose(
        inception_score(shifted, 4).mean, inception_score(x, 4).mean, rtol=1e-12
    )


def test_stored_as_float16():
    x = logits().astype(np.float16)
    expected = inception_score(x.astype(np.float64))
    np.testing.assert_allclose(inception_score(x).mean, expected.mean, rtol=1e-14)


def test_what_is_wrong_is_told():
    x = logits()
    x[17, 3] = -np.inf
    with pytest.raises(ValueError, match="logits: row 17 has -inf in dimension 3"):
        inception_score(x)
    with pytest.raises(ValueError, match="logits: 9 examples; must be at least 10"):
        inception_score(logits(9))
    with pytest.raises(ValueError, match="splits=0"):
        inception_score(logits(), splits=0)
