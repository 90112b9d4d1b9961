"""Squared maximum mean discrepancies: KID with a cubic kernel, CMMD with a Gaussian one.

Products are float32, sums float64. Of both kernels the constant 1 is left out, which stands in all
three terms of the discrepancy and cancels: what float32 rounds is then small.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from evaluation.metrics.checks import check_pair

# Rows and columns of a block of products.
_BLOCK = 2048
# From products x.y to the kernel less 1; may write over its argument.
Kernel = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Kid:
    """KID over random subsets.

    Attributes:
        mean: over the subsets.
        std: over the subsets, divided by their number.
        subsets: how many.
        subset_size: examples of each.
    """

    mean: float
    std: float
    subsets: int
    subset_size: int


def kid(
    generated: Float[np.ndarray, "count dim"],
    reference: Float[np.ndarray, "others width"],
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> Kid:
    """Kernel Inception distance over subsets (Binkowski et al. 2018, section 4 and appendix D).

    Unbiased, kernel (x.y / dim + 1)^3. Equals torch-fidelity 0.4 with the generated set as its
    input 1: the same subsets, drawn without replacement by one RandomState in turn.

    Args:
        generated: features.
        reference: of the data.
        subsets: how many.
        subset_size: examples of each, of either set.
        seed: of the subsets.

    Raises:
        ValueError: a set is smaller than a subset, dimensions differ, a value is not finite.
    """
    if subsets < 1 or subset_size < 2:
        raise ValueError(f"subsets={subsets}, subset_size={subset_size}; must be at least 1 and 2")
    for name, features in (("generated", generated), ("reference", reference)):
        if len(features) < subset_size:
            raise ValueError(
                f"{name}: {len(features)} examples, fewer than subset_size={subset_size}; "
                "give more, or take `kid_full`"
            )
    check_pair(generated, reference)
    rng, kernel = np.random.RandomState(seed), cubic(generated.shape[1])
    found = []
    for _ in range(subsets):
        x = generated[rng.choice(len(generated), subset_size, replace=False)]
        y = reference[rng.choice(len(reference), subset_size, replace=False)]
        found.append(_discrepancy(x, y, kernel, biased=False))
    return Kid(float(np.mean(found)), float(np.std(found)), subsets, subset_size)


def kid_full(
    generated: Float[np.ndarray, "count dim"],
    reference: Float[np.ndarray, "others width"],
) -> float:
    """KID of all pairs at once: the unbiased estimator of least variance, without subsets.

    Gretton et al. 2012, equation 3, with the kernel of `kid`.

    Raises:
        ValueError: fewer than two examples, dimensions differ, a value is not finite.
    """
    check_pair(generated, reference)
    return _discrepancy(generated, reference, cubic(generated.shape[1]), biased=False)


def cmmd(
    generated: Float[np.ndarray, "count dim"],
    reference: Float[np.ndarray, "others width"],
    sigma: float = 10.0,
    biased: bool = True,
) -> float:
    """CMMD: 1000 times the squared MMD of unit embeddings, kernel exp(-|x - y|^2 / (2 sigma^2)).

    Jayasumana et al. 2024. Equals google-research's `cmmd/distance.py`, whose estimator keeps the
    diagonals (Gretton et al. 2012, equation 5), though the paper's does not: that is biased=False.

    Args:
        generated: embeddings; brought to length 1 here.
        reference: of the data.
        sigma: of the kernel.
        biased: whether pairs of an example with itself count.

    Raises:
        ValueError: an embedding of length 0, dimensions differ, a value is not finite.
    """
    check_pair(generated, reference)
    if not sigma > 0:
        raise ValueError(f"sigma={sigma}; must be above 0")
    x, y = unit(generated, "generated"), unit(reference, "reference")
    gamma = 1.0 / (2.0 * sigma**2)

    def gaussian(products: np.ndarray) -> np.ndarray:
        # |x - y|^2 = 2 - 2 x.y
        products -= 1.0
        products *= 2.0 * gamma
        return np.expm1(products, out=products)

    return 1000.0 * _discrepancy(x, y, gaussian, biased)


def cubic(dims: int) -> Kernel:
    """(products / dims + 1)^3 - 1."""

    def kernel(products: np.ndarray) -> np.ndarray:
        products *= 1.0 / dims
        # u^3 + 3 u^2 + 3 u
        value = products + 3.0
        value *= products
        value += 3.0
        value *= products
        return value

    return kernel


def unit(features: Float[np.ndarray, "count dim"], name: str) -> Float[np.ndarray, "count dim"]:
    """Rows divided by their length, in float64.

    Raises:
        ValueError: a row is zero.
    """
    features = features.astype(np.float64)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    if not lengths.all():
        raise ValueError(f"{name}: row {int(lengths.argmin())} is zero and has no direction")
    return features / lengths


def _discrepancy(
    x: Float[np.ndarray, "count dim"],
    y: Float[np.ndarray, "others dim"],
    kernel: Kernel,
    biased: bool,
) -> float:
    x, y = x.astype(np.float32, copy=False), y.astype(np.float32, copy=False)
    across = _sum(x, y, kernel) / (len(x) * len(y))
    return _own(x, kernel, biased) + _own(y, kernel, biased) - 2.0 * across


def _sum(
    x: Float[np.ndarray, "count dim"], y: Float[np.ndarray, "others dim"], kernel: Kernel
) -> float:
    """The kernel summed over all pairs."""
    return sum(
        float(kernel(x[i : i + _BLOCK] @ y[j : j + _BLOCK].T).sum(dtype=np.float64))
        for i in range(0, len(x), _BLOCK)
        for j in range(0, len(y), _BLOCK)
    )


def _own(x: Float[np.ndarray, "count dim"], kernel: Kernel, biased: bool) -> float:
    """The kernel's mean over pairs of one set, with or without those of an example with itself."""
    count, pairs, diagonal = len(x), 0.0, 0.0
    for i in range(0, count, _BLOCK):
        rows = x[i : i + _BLOCK]
        square = kernel(rows @ rows.T)
        diagonal += float(np.trace(square, dtype=np.float64))
        pairs += float(square.sum(dtype=np.float64)) + 2.0 * _sum(rows, x[i + _BLOCK :], kernel)
    if biased:
        return pairs / count**2
    return (pairs - diagonal) / (count * (count - 1))
