"""Fréchet distance between Gaussians fitted to features: FID, sFID, FD-DINOv2, and FID-infinity.

Which of these it is depends on the features alone. All of it is float64 on the host.
"""

import dataclasses
import functools
import logging

import numpy as np
from jaxtyping import Float

from evaluation.metrics.checks import check_dims, check_features

log = logging.getLogger(__name__)

# Rows that are brought to float64 at a time.
_ROWS = 4096
Features = Float[np.ndarray, "count dim"]


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of a set of features; merges with those of another part of the set.

    Attributes:
        mean: of each dimension.
        covariance: unbiased, divided by count - 1.
        count: examples; 0 where it is not known, as of a published file.

    Raises:
        ValueError: a shape does not fit, a value is not finite, the covariance is not symmetric.
    """

    mean: Float[np.ndarray, "dim"]
    covariance: Float[np.ndarray, "rows columns"]
    count: int

    def __post_init__(self):
        dims = len(self.mean)
        if self.covariance.shape != (dims, dims):
            raise ValueError(
                f"covariance is {list(self.covariance.shape)}, and the mean has {dims} dimensions; "
                f"must be [{dims}, {dims}]"
            )
        if self.count < 0 or self.count == 1:
            raise ValueError(f"count={self.count}; must be at least 2, or 0 where it is not known")
        for name in ("mean", "covariance"):
            value = np.asarray(getattr(self, name), np.float64)
            if not np.isfinite(value).all():
                place = np.argwhere(~np.isfinite(value))[0].tolist()
                raise ValueError(f"{name} is not finite at {place}")
            object.__setattr__(self, name, value)
        skew = np.abs(self.covariance - self.covariance.T)
        if skew.max() > 1e-6 * np.abs(self.covariance).max():
            row, column = np.unravel_index(skew.argmax(), skew.shape)
            raise ValueError(
                f"covariance is not symmetric: {self.covariance[row, column]} at [{row}, {column}],"
                f" {self.covariance[column, row]} at [{column}, {row}]"
            )

    @classmethod
    def of(cls, features: Float[np.ndarray, "count dim"], name: str = "features") -> "Moments":
        """Those of features of any floating type, in float64 whatever they are stored in.

        Equals np.mean and np.cov(rowvar=False) of the features as float64.

        Raises:
            ValueError: fewer than two rows, or one that is not finite; says which.
        """
        check_features(features, name)
        mean = features.mean(axis=0, dtype=np.float64)
        squares = np.zeros((len(mean), len(mean)))
        for start in range(0, len(features), _ROWS):
            part = features[start : start + _ROWS] - mean
            squares += part.T @ part
        return cls(mean, squares / (len(features) - 1), len(features))

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets together (Chan, Golub and LeVeque 1983, equation 2.1).

        Raises:
            ValueError: dimensions differ, or a count is not known.
        """
        if len(self.mean) != len(other.mean):
            raise ValueError(
                f"moments of {len(self.mean)} and of {len(other.mean)} dimensions do not merge"
            )
        if not self.count or not other.count:
            raise ValueError("moments merge only where both counts are known")
        count, step = self.count + other.count, other.mean - self.mean
        squares = (self.count - 1) * self.covariance + (other.count - 1) * other.covariance
        squares += (self.count * other.count / count) * np.outer(step, step)
        mean = self.mean + step * (other.count / count)
        return Moments(mean, squares / (count - 1), count)

    @functools.cached_property
    def root(self) -> Float[np.ndarray, "dim dim"]:
        """The symmetric square root of the covariance, made at the first use and kept."""
        values, vectors = np.linalg.eigh(self.covariance)
        # V diag(values)^(1/2) V^T as one product with its own transpose, which costs half.
        half = vectors * np.maximum(values, 0.0) ** 0.25
        return half @ half.T


@dataclasses.dataclass(frozen=True)
class Frechet:
    """A Fréchet distance, its parts, and how well it is posed.

    Attributes:
        distance: mean_term + trace_term; can be below 0 by rounding only.
        mean_term: |mean_g - mean_r|^2.
        trace_term: tr(C_g + C_r - 2 (C_g C_r)^(1/2)).
        rank: eigenvalues of C_g C_r that are above rounding, which are those that count.
        least_eigenvalue: of C_g C_r; below 0 by rounding, whose size it tells.
    """

    distance: float
    mean_term: float
    trace_term: float
    rank: int
    least_eigenvalue: float


def frechet_distance(
    generated: Moments | Float[np.ndarray, "count dim"],
    reference: Moments | Float[np.ndarray, "others width"],
) -> Frechet:
    """|m_g - m_r|^2 + tr(C_g + C_r - 2 (C_g C_r)^(1/2)), Heusel et al. 2017, equation 6.

    The eigenvalues of C_g C_r are those of R C_g R, R the reference's root, which is symmetric.
    Where a set has fewer examples than dimensions and its features are given, they are taken from
    the count x count matrix of its centred features instead. Equals `evaluator.py` of
    guided-diffusion, pytorch-fid and torch-fidelity on the same features; it has no eps and no
    imaginary part. Of 'spatial' features it is sFID (Nash et al. 2021).

    Args:
        generated: features, or their moments.
        reference: the same of the data; its root is kept, so give `Moments` to use it often.

    Raises:
        ValueError: dimensions differ, fewer than two examples, a value that is not finite.
    """
    check_dims(_dims(generated), _dims(reference))
    sets, moments = (generated, reference), []
    for name, given in zip(("generated", "reference"), sets, strict=True):
        moments.append(given if isinstance(given, Moments) else Moments.of(given, name))
        _warn_if_few(name, moments[-1].count, _dims(given))
    few = [not isinstance(x, Moments) and len(x) < x.shape[1] for x in sets]
    first, second = moments
    if all(few):
        cross = np.linalg.svdvals(_scaled(generated, first) @ _scaled(reference, second).T) ** 2
        values = cross[::-1]
    elif few[0]:
        values = _small(_scaled(generated, first), second.covariance)
    elif few[1]:
        values = _small(_scaled(reference, second), first.covariance)
    else:
        values = np.linalg.eigvalsh(second.root @ first.covariance @ second.root)
    step = first.mean - second.mean
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    return _distance(step @ step, traces, values)


@dataclasses.dataclass(frozen=True)
class FrechetInfinity:
    """The Fréchet distance as the number of generated examples grows without bound.

    Attributes:
        distance: the intercept of the regression on 1 / count.
        standard_error: of the intercept, from the residuals. The subsets overlap, so it tells of
            the fit and not of another draw of the examples.
        residual: root mean square of the regression's residuals.
        slope: of the distance over 1 / count.
        counts: examples of each subset.
        distances: of each subset.
    """

    distance: float
    standard_error: float
    residual: float
    slope: float
    counts: tuple[int, ...]
    distances: tuple[float, ...]


def frechet_infinity(
    generated: Float[np.ndarray, "count dim"],
    reference: Moments | Float[np.ndarray, "others width"],
    points: int = 15,
    seed: int = 0,
) -> FrechetInfinity:
    """FID-infinity: the intercept of distances of random subsets over 1 / count.

    Chong and Forsyth 2020, section 4, at the subset sizes of dgm-eval, which draws without a seed:
    linspace(min(5000, count / 10), count). Subset i is the first examples
    of the i-th permutation of numpy's default_rng(seed).

    Args:
        generated: features; moments do not do.
        reference: of the data, features or moments.
        points: how many subsets, at least 3.
        seed: of the subsets.

    Raises:
        ValueError: as `frechet_distance`, or too few points or examples.
    """
    check_dims(_dims(generated), _dims(reference))
    check_features(generated, "generated", 20)
    if points < 3:
        raise ValueError(f"points={points}; must be at least 3 to have a residual")
    if not isinstance(reference, Moments):
        reference = Moments.of(reference, "reference")
    count, dims = generated.shape
    counts = np.linspace(min(5000, count // 10), count, points).astype(int)
    _warn_if_few("generated, smallest subset", int(counts[0]), dims)
    # With Y = (X - mean) R, the eigenvalues of R C R are those of the covariance of Y: one product
    # for all subsets. Sums over a subset are those over all less those over the rest.
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(count) for _ in counts]
    member = np.zeros((points, count))
    for row, order, size in zip(member, orders, counts, strict=True):
        row[order[:size]] = 1.0
    center = generated.mean(axis=0, dtype=np.float64)
    mapped, squared, sums = np.empty((count, dims)), np.empty(count), np.zeros((points, dims))
    for start in range(0, count, _ROWS):
        here = slice(start, start + _ROWS)
        part = generated[here] - center
        squared[here] = np.einsum("ij,ij->i", part, part)
        sums += member[:, here] @ part
        mapped[here] = part @ reference.root
    whole = mapped.T @ mapped
    distances = []
    for total, order, size in zip(sums, orders, counts.tolist(), strict=True):
        chosen, mean = order[:size], total / size
        trace = (squared[chosen].sum() - size * (mean @ mean)) / (size - 1)
        shift = mean @ reference.root
        if size < dims:
            part = mapped[chosen] - shift
            values = np.linalg.eigvalsh(part @ part.T / (size - 1))
        else:
            if size <= count // 2:
                products = _gram(mapped, chosen)
            else:
                products = whole - _gram(mapped, order[size:])
            covariance = (products - size * np.outer(shift, shift)) / (size - 1)
            values = np.linalg.eigvalsh(covariance)
        step = mean + center - reference.mean
        traces = trace + np.trace(reference.covariance)
        found = _distance(step @ step, traces, values)
        distances.append(found.distance)
    return _regress(counts, np.array(distances))


def _regress(counts: np.ndarray, distances: Float[np.ndarray, "points"]) -> FrechetInfinity:
    """Least squares of distances on 1 / counts."""
    inverse = 1.0 / counts
    spread = inverse - inverse.mean()
    slope = spread @ distances / (spread @ spread)
    intercept = distances.mean() - slope * inverse.mean()
    residuals = distances - intercept - slope * inverse
    variance = residuals @ residuals / (len(counts) - 2)
    error = np.sqrt(variance * (1 / len(counts) + inverse.mean() ** 2 / (spread @ spread)))
    return FrechetInfinity(
        float(intercept),
        float(error),
        float(np.sqrt(np.mean(residuals**2))),
        float(slope),
        tuple(counts.tolist()),
        tuple(distances.tolist()),
    )


def _distance(
    mean_term: float,
    traces: float,
    values: Float[np.ndarray, "values"],
) -> Frechet:
    """From the eigenvalues of C_g C_r, ascending."""
    # In the directions that a set lacks, as one of fewer examples than dimensions does, there is
    # rounding, of either sign and relative size 1e-16, which would count by its root, 1e-8 in each
    # of them. So nothing is kept that is of the negative ones' order of size.
    rounding = max(-4.0 * values[0], np.finfo(np.float64).eps * values[-1])
    kept = values[values > rounding]
    trace_term = traces - 2.0 * np.sqrt(kept).sum()
    return Frechet(
        distance=float(mean_term + trace_term),
        mean_term=float(mean_term),
        trace_term=float(trace_term),
        rank=len(kept),
        least_eigenvalue=float(values[0]),
    )


def _dims(given: Moments | Features) -> int:
    return len(given.mean) if isinstance(given, Moments) else given.shape[1]


def _scaled(features: Features, moments: Moments) -> Float[np.ndarray, "count dim"]:
    """A with A^T A the covariance."""
    return (features - moments.mean) / np.sqrt(moments.count - 1)


def _small(
    scaled: Float[np.ndarray, "count dim"], covariance: Float[np.ndarray, "dim dim"]
) -> Float[np.ndarray, "count"]:
    return np.linalg.eigvalsh(scaled @ covariance @ scaled.T)


def _gram(mapped: Float[np.ndarray, "count dim"], rows: np.ndarray) -> Float[np.ndarray, "dim dim"]:
    """Sum of outer products of rows."""
    total = np.zeros((mapped.shape[1], mapped.shape[1]))
    for start in range(0, len(rows), _ROWS):
        part = mapped[rows[start : start + _ROWS]]
        total += part.T @ part
    return total


def _warn_if_few(name: str, count: int, dims: int) -> None:
    if 0 < count < dims:
        log.warning(
            "%s: %d examples of %d dimensions: the covariance is singular and the Fréchet distance "
            "far too large; compare it only at the same count",
            name,
            count,
            dims,
        )
