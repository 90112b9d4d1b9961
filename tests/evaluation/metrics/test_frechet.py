import json
import logging
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from evaluation.metrics import Moments, frechet_distance, frechet_infinity
from tests.golden.evaluation.sets import features, frechet_pairs, pair

GOLDEN = Path(__file__).parents[2] / "golden" / "evaluation" / "metrics.json"
EXPECTED = json.loads(GOLDEN.read_text())["frechet"]
PAIRS = frechet_pairs()


@pytest.mark.parametrize("given", ["features", "moments", "mixed"])
@pytest.mark.parametrize("program", ["guided-diffusion", "torch-fidelity"])
@pytest.mark.parametrize("name", PAIRS)
def test_as_others_have_it(name, program, given):
    generated, reference = PAIRS[name]
    if given != "features":
        reference = Moments.of(reference)
    if given == "moments":
        generated = Moments.of(generated)
    got = frechet_distance(generated, reference).distance
    np.testing.assert_allclose(got, EXPECTED[name][program], rtol=1e-6, atol=1e-9)


def exact(generated, reference):
    """By the singular values of the product of centred features, which squares nothing."""
    parts = [
        (x - x.mean(0)) / np.sqrt(len(x) - 1)
        for x in (generated.astype(np.float64), reference.astype(np.float64))
    ]
    step = generated.mean(0, dtype=np.float64) - reference.mean(0, dtype=np.float64)
    cross = np.linalg.svdvals(parts[0] @ parts[1].T).sum()
    return step @ step + sum((x**2).sum() for x in parts) - 2 * cross


@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("sizes", [(40, 700), (700, 40), (40, 50), (20, 20), (64, 65), (2, 3)])
def test_fewer_examples_than_dimensions(sizes, moments):
    x, y = (z[:n] for z, n in zip(pair(), sizes, strict=True))
    given = [Moments.of(z) if moments else z for z in (x, y)]
    found = frechet_distance(*given)
    np.testing.assert_allclose(found.distance, exact(x, y), rtol=1e-10)
    assert found.rank == min(*sizes, 65) - 1


@pytest.mark.parametrize("count", [24, 32])
def test_the_rank_of_moments_is_what_the_count_allows(count):
    """One or a few empty directions, where rounding is of either sign: no sign gives them away."""
    for seed in range(40):
        x, y = features(seed, count, dims=32), features(seed + 100, 300, dims=32)
        found = frechet_distance(Moments.of(x), Moments.of(y))
        assert found.rank == count - 1
        np.testing.assert_allclose(found.distance, exact(x, y), rtol=1e-11)


def test_the_parts_add_up_and_tell_what_is_singular():
    generated, reference = PAIRS["dead dimensions"]
    found = frechet_distance(generated, reference)
    assert found.distance == pytest.approx(found.mean_term + found.trace_term, rel=1e-12)
    step = generated.mean(0, dtype=np.float64) - reference.mean(0, dtype=np.float64)
    assert found.mean_term == pytest.approx(step @ step, rel=1e-12)
    # 11 dimensions are dead, and those with the least variance are below rounding.
    assert 30 < found.rank <= 64 - 11
    assert abs(found.least_eigenvalue) < 1e-13
    assert frechet_distance(*PAIRS["plain"]).least_eigenvalue > 1e-6


def test_a_rank_that_the_count_does_not_tell():
    """Features of 900 examples in 10 of 64 directions."""
    mix = np.random.RandomState(0).randn(10, 64)
    x, y = (z[:, :10].astype(np.float64) @ mix for z in pair())
    full = pair()[1]
    for first, second in ((x, y), (x, full), (full, x)):
        found = frechet_distance(first, second)
        assert found.rank == 10
        np.testing.assert_allclose(found.distance, exact(first, second), rtol=1e-10)
    assert abs(frechet_distance(x, x).distance) < 1e-9


def test_identical_sets():
    x = pair()[0]
    for given in (x, Moments.of(x), x[:30], features(0, 500, dims=200)):
        assert abs(frechet_distance(given, given).distance) < 1e-9


@hypothesis.given(st.integers(0, 2**31 - 1), st.integers(3, 40), st.integers(3, 40))
def test_symmetric_and_blind_to_rotation_and_common_shift(seed, count, others):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(count, 8)), 1.0 + rng.normal(size=(others, 8))
    distance = frechet_distance(x, y).distance
    assert distance > 0
    rotation, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    shift = rng.normal(size=8)
    for a, b in ((y, x), (x @ rotation + shift, y @ rotation + shift)):
        np.testing.assert_allclose(frechet_distance(a, b).distance, distance, rtol=1e-6)
    np.testing.assert_allclose(frechet_distance(3 * x, 3 * y).distance, 9 * distance, rtol=1e-6)


def test_gaussians_in_closed_form():
    """Of commuting covariances it is |m1 - m2|^2 + sum (s1 - s2)^2."""
    first = Moments(np.array([1.0, 2.0]), np.diag([4.0, 9.0]), 0)
    second = Moments(np.array([1.0, 5.0]), np.diag([1.0, 0.0]), 0)
    found = frechet_distance(first, second)
    assert found.mean_term == pytest.approx(9.0)
    assert found.trace_term == pytest.approx(1.0 + 9.0)
    assert found.rank == 1


@hypothesis.given(st.integers(0, 2**31 - 1), st.lists(st.integers(2, 30), min_size=2, max_size=5))
def test_parts_merge_to_the_moments_of_all(seed, counts):
    rng = np.random.default_rng(seed)
    parts = [rng.normal(10 * k, 1 + k, size=(n, 5)) for k, n in enumerate(counts)]
    merged = Moments.of(parts[0])
    for part in parts[1:]:
        merged = merged.merge(Moments.of(part))
    whole = np.concatenate(parts)
    assert merged.count == len(whole)
    np.testing.assert_allclose(merged.mean, whole.mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged.covariance, np.cov(whole, rowvar=False), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_moments_are_those_of_float64(kind):
    """More rows than a block, far from the origin, where float32 sums would lose digits."""
    x = (features(0, 5000, dims=6) + 1000.0).astype(kind)
    found, exact = Moments.of(x), x.astype(np.float64)
    assert found.mean.dtype == found.covariance.dtype == np.float64
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(exact, rowvar=False), rtol=1e-10)


def test_the_root_is_made_once():
    moments = Moments.of(pair()[1])
    np.testing.assert_allclose(moments.root @ moments.root, moments.covariance, atol=1e-12)
    assert moments.root is moments.root


def test_few_examples_are_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        frechet_distance(*PAIRS["plain"])
        assert not caplog.messages
        frechet_distance(*PAIRS["few generated"])
    assert caplog.messages[0].startswith("generated: 40 examples of 64 dimensions")


def with_value(value):
    x = features(0, 5000, dims=3)
    x[4321, 2] = value
    return x


@pytest.mark.parametrize(
    ("generated", "reference", "message"),
    [
        (with_value(np.nan), features(0, 9, dims=3), "generated: row 4321 has nan in dimension 2"),
        (features(0, 9, dims=3), with_value(np.inf), "reference: row 4321 has inf in dimension 2"),
        (features(0, 9, dims=3), features(0, 9, dims=4), "generated has 3 dim.* reference 4"),
        (features(0, 1, dims=3), features(0, 9, dims=3), "generated: 1 examples; must be at least"),
    ],
)
def test_what_is_wrong_is_told(generated, reference, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(generated, reference)


def test_moments_that_are_none():
    mean, eye = np.zeros(3), np.eye(3)
    skew, broken = eye.copy(), eye.copy()
    skew[0, 2], broken[1, 1] = 0.5, np.nan
    for covariance, message in (
        (eye[:2], r"covariance is \[2, 3\], and the mean has 3 dimensions; must be \[3, 3\]"),
        (skew, r"not symmetric: 0.5 at \[0, 2\], 0.0 at \[2, 0\]"),
        (broken, r"covariance is not finite at \[1, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            Moments(mean, covariance, 10)
    with pytest.raises(ValueError, match="count=1; must be at least 2, or 0"):
        Moments(mean, eye, 1)
    with pytest.raises(ValueError, match="both counts are known"):
        Moments(mean, eye, 0).merge(Moments(mean, eye, 5))
    with pytest.raises(ValueError, match="3 and of 2 dimensions do not merge"):
        Moments(mean, eye, 5).merge(Moments(mean[:2], eye[:2, :2], 5))


def test_infinity_is_the_intercept_of_subsets():
    generated, reference = pair()
    found = frechet_infinity(generated, reference, points=5, seed=3)
    counts = np.linspace(90, 900, 5).astype(int)
    assert found.counts == tuple(counts)
    rng = np.random.default_rng(3)
    subsets = [generated[rng.permutation(900)[:count]] for count in counts]
    expected = [frechet_distance(subset, reference).distance for subset in subsets]
    np.testing.assert_allclose(found.distances, expected, rtol=1e-9)
    coefficients, covariance = np.polyfit(1 / counts, expected, 1, cov=True)
    np.testing.assert_allclose([found.slope, found.distance], coefficients, rtol=1e-8)
    np.testing.assert_allclose(found.standard_error, np.sqrt(covariance[1, 1]), rtol=1e-8)
    residuals = expected - np.polyval(coefficients, 1 / counts)
    np.testing.assert_allclose(found.residual, np.sqrt(np.mean(residuals**2)), rtol=1e-6)
    again = frechet_infinity(generated, Moments.of(reference), points=5, seed=3)
    np.testing.assert_allclose(again.distances, found.distances, rtol=1e-12)
    assert frechet_infinity(generated, reference, points=5).distances != found.distances


def test_infinity_of_subsets_with_fewer_examples_than_dimensions():
    generated, reference = features(1, 400, dims=96, shift=0.2), features(2, 300, dims=96)
    found = frechet_infinity(generated, reference, points=4)
    rng = np.random.default_rng(0)
    for count, distance in zip(found.counts, found.distances, strict=True):
        subset = generated[rng.permutation(400)[:count]]
        np.testing.assert_allclose(distance, exact(subset, reference), rtol=1e-9)
    assert found.counts[0] == 40


def test_infinity_takes_most_of_the_bias_away():
    """Both sets are of one distribution: the true distance is the reference's own error."""
    generated, reference = features(1, 900), features(2, 20000)
    found = frechet_infinity(generated, reference)
    assert abs(found.distance) < 0.2 * found.distances[-1]


def test_infinity_says_what_is_too_few():
    with pytest.raises(ValueError, match="points=2; must be at least 3"):
        frechet_infinity(*pair(), points=2)
    with pytest.raises(ValueError, match="generated: 19 examples; must be at least 20"):
        frechet_infinity(pair()[0][:19], pair()[1])
