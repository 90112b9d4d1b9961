import json
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from evaluation.metrics import neighbours, prdc, precision_recall
from tests.golden.evaluation.sets import features, pair

GOLDEN = Path(__file__).parents[2] / "golden" / "evaluation" / "metrics.json"
EXPECTED = json.loads(GOLDEN.read_text())
# Both are shares of a few hundred examples: any other answer is farther away than this.
EXACT = {"rtol": 1e-6, "atol": 0}


def test_precision_and_recall_as_torch_fidelity_has_them():
    found, expected = precision_recall(*pair()), EXPECTED["precision_recall"]["torch-fidelity"]
    np.testing.assert_allclose(found.precision, expected["precision"], **EXACT)
    np.testing.assert_allclose(found.recall, expected["recall"], **EXACT)


@pytest.mark.parametrize(
    ("name", "scale"), [("guided-diffusion", 1), ("guided-diffusion, large", 60)]
)
def test_precision_and_recall_as_guided_diffusion_rounds_them(name, scale):
    generated, reference = (np.float32(scale) * x for x in pair())
    found = precision_recall(generated, reference, float16=True)
    expected = EXPECTED["precision_recall"][name]
    np.testing.assert_allclose([found.precision, found.recall], expected, **EXACT)
    if scale == 1:
        assert found != precision_recall(generated, reference)


@pytest.mark.parametrize("k", [3, 5])
def test_prdc_as_its_authors_have_it(k):
    found, expected = prdc(*pair(), neighbours=k), EXPECTED["prdc"][str(k)]
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, **EXACT)


def test_which_set_is_which():
    """The generated set is a small part of the reference: precise, and recalls little."""
    rng = np.random.default_rng(0)
    reference = rng.uniform(-1, 1, size=(400, 2))
    generated = 0.2 * rng.uniform(-1, 1, size=(300, 2))
    for found in (precision_recall(generated, reference), prdc(generated, reference)):
        assert found.precision > 0.95
        assert found.recall < 0.2
    assert prdc(generated, reference).coverage < 0.2
    # The other way round density and coverage are not those of a swapped name, either.
    swapped = prdc(reference, generated)
    assert swapped.precision < 0.2
    assert swapped.recall > 0.95
    assert swapped.coverage > prdc(generated, reference).coverage
    assert swapped.density < prdc(generated, reference).density


def test_by_hand():
    """On a line, k=1: balls of the reference reach 1, 1 and 8; of the generated 2, 2 and 6.5."""
    reference = np.array([[0.0], [1.0], [9.0]])
    generated = np.array([[1.5], [3.5], [-5.0]])
    found = prdc(generated, reference, neighbours=1)
    # 1.5 lies in the balls of 1 and 9, 3.5 in that of 9, -5 in none.
    assert found.precision == pytest.approx(2 / 3)
    assert found.density == pytest.approx(3 / 3)
    # 0 lies in the balls of 1.5 and -5, 1 in those of 1.5 and -5, 9 in none.
    assert found.recall == pytest.approx(2 / 3)
    # Nothing generated lies in the ball of 0.
    assert found.coverage == pytest.approx(2 / 3)


def test_the_rim_counts_for_precision_and_recall_alone():
    """Each generated example is at the rim of a ball; whole numbers about 0, exact in float32."""
    reference, generated = np.array([[-1.0], [1.0]]), np.array([[-3.0], [3.0]])
    assert precision_recall(generated, reference, neighbours=1).precision == 1.0
    assert prdc(generated, reference, neighbours=1).precision == 0.0


@hypothesis.given(st.integers(0, 2**31 - 1))
def test_order_does_not_count(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(40, 5)), 0.8 * rng.normal(size=(30, 5))
    shuffled = x[rng.permutation(40)], y[rng.permutation(30)]
    assert precision_recall(*shuffled) == precision_recall(x, y)
    assert prdc(*shuffled) == pytest.approx(prdc(x, y))
    shift = rng.normal(size=5)
    assert prdc(x + shift, y + shift) == pytest.approx(prdc(x, y))


@pytest.mark.parametrize("distances", [neighbours._single, neighbours._half])
@pytest.mark.parametrize("side", [2, 3, 50, 149, 150, 1000])
def test_radii_are_found_in_blocks(distances, side):
    x = features(1, 150)
    exact = ((x[:, None] - x[None]) ** 2).sum(-1, dtype=np.float64)
    found = neighbours._radii(x, 3, (side, side), distances)
    rtol = 1e-4 if distances is neighbours._single else 1e-2
    np.testing.assert_allclose(found, np.sort(exact, axis=1)[:, 3], rtol=rtol)


@pytest.mark.parametrize("sides", [(64, 50), (7, 1000), (100, 3)])
def test_blocks_are_all_pairs_once(sides):
    generated, reference = (z[:150] for z in pair())
    covered = np.zeros((150, 150), int)
    for rows, columns, block in neighbours._blocks(generated, reference, sides, neighbours._single):
        covered[rows, columns] += 1
        assert block.shape == covered[rows, columns].shape
    assert (covered == 1).all()


def test_float16_overflow_is_of_the_whole_block():
    """One far example takes all others of its block to float32."""
    x = features(0, 30)
    small = neighbours._half(x, x)
    assert np.isfinite(small).all()
    assert (small == small.astype(np.float16)).all()
    far = np.concatenate([x, np.full((1, 64), 300.0, np.float32)])
    block = neighbours._half(far, far)
    assert np.isfinite(block).all()
    assert (block[:30, :30] != small).mean() > 0.5


def test_features_stored_as_float16():
    half = [x.astype(np.float16) for x in pair()]
    assert prdc(*half) == prdc(*(x.astype(np.float32) for x in half))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prdc(features(0, 5), features(0, 9)), "generated: 5 examples; must be at least 6"),
        (lambda: precision_recall(features(0, 9), features(0, 3)), "reference: 3 examples"),
        (lambda: prdc(features(0, 9), features(0, 9, dims=2)), "64 dimensions, reference 2"),
        (lambda: prdc(*pair(), neighbours=0), "neighbours=0; must be at least 1"),
    ],
)
def test_what_is_wrong_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()
