import json
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from evaluation.metrics import vendi_score
from tests.golden.evaluation.sets import features, pair

GOLDEN = Path(__file__).parents[2] / "golden" / "evaluation" / "metrics.json"
EXPECTED = json.loads(GOLDEN.read_text())["vendi"]


def test_as_its_authors_have_it():
    np.testing.assert_allclose(vendi_score(pair()[0]), EXPECTED["many"], rtol=1e-10)
    np.testing.assert_allclose(vendi_score(features(5, 30)), EXPECTED["few"], rtol=1e-10)


def test_it_counts_what_is_different():
    directions = np.eye(6)[[0, 0, 0, 2, 2, 2, 5, 5, 5]]
    assert vendi_score(directions) == pytest.approx(3.0, rel=1e-12)
    assert vendi_score(np.ones((20, 4))) == pytest.approx(1.0, rel=1e-12)
    assert vendi_score(np.eye(7)) == pytest.approx(7.0, rel=1e-12)


@hypothesis.given(st.integers(0, 2**31 - 1), st.integers(1, 12), st.integers(1, 12))
def test_both_matrices_give_one_score(seed, count, dims):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, dims))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    scores = []
    for matrix in (unit @ unit.T, unit.T @ unit):
        values = np.clip(np.linalg.eigvalsh(matrix / count), 1e-300, None)
        scores.append(np.exp(-np.sum(values * np.log(values))))
    np.testing.assert_allclose(vendi_score(x), scores, rtol=1e-9)
    np.testing.assert_allclose(vendi_score(np.concatenate([x, x])), vendi_score(x), rtol=1e-9)


def test_what_is_wrong_is_told():
    with pytest.raises(ValueError, match="features: row 1 is zero and has no direction"):
        vendi_score(np.diag([1.0, 0.0]))
    with pytest.raises(ValueError, match="features: row 0 has inf in dimension 1"):
        vendi_score(np.array([[1.0, np.inf]]))
