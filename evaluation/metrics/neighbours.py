"""Precision, recall, density and coverage: who lies within the nearest neighbours of whom.

A set's region is the union of balls, one about each of its examples, that reach to its k-th nearest
neighbour in the same set. Precision is the share of *generated* examples in the region of the
*reference*; recall the share of *reference* examples in the region of the *generated*. Distances
are squared and stand in memory a block at a time.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Float

from evaluation.metrics.checks import check_pair

Features = Float[np.ndarray, "count dim"]
# Squared distances [m, n] of the rows of two blocks.
Distances = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
    """Shares in [0, 1].

    Attributes:
        precision: of generated examples within the reference's region.
        recall: of reference examples within the generated region.
    """

    precision: float
    recall: float


@dataclasses.dataclass(frozen=True)
class Prdc:
    """Precision and recall as in `PrecisionRecall`, and what outliers harm less.

    Attributes:
        precision: of generated examples within the reference's region.
        recall: of reference examples within the generated region.
        density: balls of the reference that a generated example is in, over k, their mean; may
            exceed 1.
        coverage: of reference examples whose ball holds a generated one.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(
    generated: Float[np.ndarray, "count dim"],
    reference: Float[np.ndarray, "others width"],
    neighbours: int = 3,
    float16: bool = False,
) -> PrecisionRecall:
    """Improved precision and recall, balls with their rim (Kynkäänniemi et al. 2019, equation 1).

    Equals torch-fidelity 0.4 with the generated set as input 1; with float16 also `evaluator.py` of
    guided-diffusion, whose squared distances are rounded to float16 wherever all of a block of
    10000 x 10000 are finite there. That one takes 50k generated and 10k reference examples.

    Args:
        generated: features.
        reference: of the data.
        neighbours: k.
        float16: whether to round as guided-diffusion does.

    Raises:
        ValueError: a set has no k neighbours, dimensions differ, a value is not finite.
    """
    found = _compare(generated, reference, neighbours, np.less_equal, float16)
    return PrecisionRecall(found.precision, found.recall)


def prdc(
    generated: Float[np.ndarray, "count dim"],
    reference: Float[np.ndarray, "others width"],
    neighbours: int = 5,
) -> Prdc:
    """Precision, recall, density, coverage, balls without their rim (Naeem et al. 2020, section 3).

    Equals `prdc.compute_prdc(real_features=reference, fake_features=generated)` of clovaai.

    Args:
        generated: features.
        reference: of the data.
        neighbours: k.

    Raises:
        ValueError: a set has no k neighbours, dimensions differ, a value is not finite.
    """
    return _compare(generated, reference, neighbours, np.less, float16=False)


def _compare(
    generated: Features,
    reference: Float[np.ndarray, "others width"],
    k: int,
    inside: Callable[..., Bool[np.ndarray, "m n"]],
    float16: bool,
) -> Prdc:
    if k < 1:
        raise ValueError(f"neighbours={k}; must be at least 1")
    check_pair(generated, reference, k + 1)
    if float16:
        sides, distances = (10000, 10000), _half
        generated, reference = generated.astype(np.float32), reference.astype(np.float32)
    else:
        # Not a power of two: columns of a block would lie on the same lines of the cache.
        sides, distances = (2000, 2000), _single
        # Distances do not change with the origin, and about the mean they lose fewest digits.
        center = reference.mean(axis=0, dtype=np.float64).astype(np.float32)
        generated, reference = (
            (x - center).astype(np.float32, copy=False) for x in (generated, reference)
        )
    ball_g = _radii(generated, k, sides, distances)
    ball_r = _radii(reference, k, sides, distances)
    count_g, count_r = len(generated), len(reference)
    balls = np.zeros(count_g, np.int64)
    recalled, covered = np.zeros(count_r, bool), np.zeros(count_r, bool)
    for rows, columns, block in _blocks(generated, reference, sides, distances):
        within = inside(block, ball_r[columns])
        balls[rows] += np.count_nonzero(within, axis=1)
        covered[columns] |= within.any(axis=0)
        recalled[columns] |= inside(block, ball_g[rows, None]).any(axis=0)
    return Prdc(
        precision=float((balls > 0).mean()),
        recall=float(recalled.mean()),
        density=float(balls.mean() / k),
        coverage=float(covered.mean()),
    )


def _radii(
    features: Float[np.ndarray, "count dim"],
    k: int,
    sides: tuple[int, int],
    distances: Distances,
) -> Float[np.ndarray, "count"]:
    """Squared distance of each example to its k-th nearest, itself being the 0-th."""
    nearest = np.full((len(features), k + 1), np.inf, np.float32)

    def add(rows: slice, block: np.ndarray) -> None:
        if block.shape[1] > k + 1:
            block = np.partition(block, k, axis=1)[:, : k + 1]
        nearest[rows] = np.partition(np.hstack([nearest[rows], block]), k, axis=1)[:, : k + 1]

    # Rounded in between, guided-diffusion's distance of a and b is not that of b and a.
    symmetric = distances is _single
    for rows, columns, block in _blocks(features, features, sides, distances, symmetric):
        add(rows, block)
        if symmetric and rows != columns:
            add(columns, block.T)
    return nearest[:, k]


def _blocks(
    first: Features,
    second: Float[np.ndarray, "others dim"],
    sides: tuple[int, int],
    distances: Distances,
    symmetric: bool = False,
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """(rows of the first, rows of the second, their squared distances), all pairs once.

    symmetric: of one set and square blocks; those below the diagonal are left out.
    """
    for i in range(0, len(first), sides[0]):
        for j in range(i if symmetric else 0, len(second), sides[1]):
            rows = slice(i, min(i + sides[0], len(first)))
            columns = slice(j, min(j + sides[1], len(second)))
            yield rows, columns, distances(first[rows], second[columns])


def _single(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """In float32; where x = y it may be a little off 0, to either side."""
    block = (-2.0 * x) @ y.T
    block += np.einsum("ij,ij->i", x, x)[:, None]
    block += np.einsum("ij,ij->i", y, y)
    return block


def _half(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Each operation rounded to float16; all of it in float32 if any of that overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        block = _rounded_distances(_to_half(x), _to_half(y), _to_half)
    return block if np.isfinite(block).all() else _rounded_distances(x, y, lambda value: value)


def _rounded_distances(x: np.ndarray, y: np.ndarray, rounded: Callable) -> np.ndarray:
    norms_x, norms_y = (rounded(rounded(z * z).sum(axis=1)) for z in (x, y))
    products = x @ y.T
    # By rows: half a dozen arrays of the whole block would not be needed at once.
    for start in range(0, len(x), 256):
        rows = slice(start, start + 256)
        part = rounded(norms_x[rows, None] - 2.0 * rounded(products[rows]))
        products[rows] = np.maximum(rounded(part + norms_y), 0.0)
    return products


def _to_half(value: np.ndarray) -> np.ndarray:
    """Rounded to float16 and back to float32, in which it is computed faster."""
    return value.astype(np.float16).astype(np.float32)
