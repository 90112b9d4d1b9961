import json
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from evaluation.metrics import cmmd, kid, kid_full
from tests.golden.evaluation.sets import alike, embeddings, features, pair

GOLDEN = Path(__file__).parents[2] / "golden" / "evaluation" / "metrics.json"
EXPECTED = json.loads(GOLDEN.read_text())


@pytest.mark.parametrize(("name", "sets"), [("apart", pair()), ("alike", alike())])
def test_kid_as_torch_fidelity_has_it(name, sets):
    found, expected = kid(*sets, subsets=20, subset_size=300), EXPECTED["kid"][name]
    # Of sets of one distribution it is about 0, and the kernel about 10.
    atol = 0.0 if name == "apart" else 1e-6
    keys = "kernel_inception_distance_mean", "kernel_inception_distance_std"
    np.testing.assert_allclose(found.mean, expected[keys[0]], rtol=1e-5, atol=atol)
    np.testing.assert_allclose(found.std, expected[keys[1]], rtol=1e-5)
    assert (found.subsets, found.subset_size) == (20, 300)


def by_definition(x, y, kernel, biased):
    """Sums over pairs as they are written."""
    own = 0.0
    for z in (x, y):
        pairs = [(i, j) for i in range(len(z)) for j in range(len(z)) if biased or i != j]
        own += np.mean([kernel(z[i], z[j]) for i, j in pairs])
    return own - 2 * np.mean([kernel(a, b) for a in x for b in y])


@hypothesis.given(st.integers(0, 2**31 - 1), st.integers(2, 9), st.integers(2, 9))
def test_the_full_kid_is_its_definition(seed, count, others):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(count, 4)), rng.normal(size=(others, 4))
    expected = by_definition(x, y, lambda a, b: (a @ b / 4 + 1) ** 3, biased=False)
    np.testing.assert_allclose(kid_full(x, y), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("biased", [False, True])
def test_cmmd_is_its_definition(biased):
    x, y = (z[:20] for z in embeddings())
    expected = 1000 * by_definition(
        x, y, lambda a, b: np.exp(-np.sum((a - b) ** 2) / (2 * 10.0**2)), biased
    )
    # Lengths do not count.
    scale = np.linspace(0.5, 2.0, 20)[:, None]
    np.testing.assert_allclose(cmmd(scale * x, y, biased=biased), expected, rtol=1e-5)


def test_cmmd_as_google_research_has_it():
    np.testing.assert_allclose(cmmd(*embeddings()), EXPECTED["cmmd"], rtol=1e-6)
    assert cmmd(*embeddings(), sigma=5.0) > 2 * EXPECTED["cmmd"]


def test_blocks_change_nothing(monkeypatch):
    sets = pair()
    whole = kid_full(*sets), cmmd(*sets), cmmd(*sets, biased=False)
    monkeypatch.setattr("evaluation.metrics.kernel._BLOCK", 128)
    np.testing.assert_allclose(
        (kid_full(*sets), cmmd(*sets), cmmd(*sets, biased=False)), whole, rtol=1e-5
    )


def test_a_set_and_itself():
    x = pair()[0]
    assert cmmd(x, x) == pytest.approx(0.0, abs=1e-9)
    # Unbiased, it is below 0: the set's own pairs lack the diagonal.
    assert kid_full(x, x) < 0


def test_subsets_are_the_seeds():
    sets = alike()
    found = kid(*sets, subsets=3, subset_size=50)
    assert kid(*sets, subsets=3, subset_size=50) == found
    assert kid(*sets, subsets=3, subset_size=50, seed=1).mean != found.mean
    # All of both sets: one value, whatever the order.
    only = kid(sets[0][:60], sets[1][:60], subsets=2, subset_size=60)
    np.testing.assert_allclose(only.mean, kid_full(sets[0][:60], sets[1][:60]), rtol=1e-4)
    assert only.std < 1e-6


def test_features_stored_as_float16():
    half = [x.astype(np.float16) for x in pair()]
    single = [x.astype(np.float32) for x in half]
    assert kid_full(*half) == pytest.approx(kid_full(*single), rel=1e-9)
    assert kid(*half, 2, 100) == kid(*single, 2, 100)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kid(*pair()), "generated: 900 examples, fewer than subset_size=1000"),
        (lambda: kid(*pair(), subset_size=800), "reference: 700 examples, fewer than"),
        (lambda: kid(*pair(), subsets=0, subset_size=9), "subsets=0"),
        (lambda: kid_full(features(0, 9), features(0, 9, dims=3)), "generated has 64 dim"),
        (lambda: kid_full(np.full((3, 2), np.nan), np.ones((3, 2))), "generated: row 0 has nan"),
        (lambda: cmmd(np.eye(3), np.diag([1.0, 0.0, 1.0])), "reference: row 1 is zero"),
        (lambda: cmmd(*embeddings(), sigma=0.0), "sigma=0.0; must be above 0"),
    ],
)
def test_what_is_wrong_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()
