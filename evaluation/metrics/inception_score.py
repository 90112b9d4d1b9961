"""Inception score, from the logits of a classifier."""

import dataclasses
import itertools

import numpy as np
from jaxtyping import Float

from evaluation.metrics.checks import check_features


@dataclasses.dataclass(frozen=True)
class InceptionScore:
    """Mean and standard deviation (divided by the number of parts) over the parts' scores."""

    mean: float
    std: float
    parts: int


def inception_score(
    logits: Float[np.ndarray, "count classes"],
    splits: int = 10,
    split_size: int = 0,
    shuffle: int | None = 2020,
) -> InceptionScore:
    """exp of the mean KL(p(y|x) || p(y)) of each part (Salimans et al. 2016), in float64.

    As it stands it equals torch-fidelity 0.4; with split_size=5000 and shuffle=None `evaluator.py`
    of guided-diffusion, which reports the mean alone. Both take the 1008 logits without the bias.

    Args:
        logits: before the softmax.
        splits: parts of about equal size.
        split_size: in place of `splits`, examples of each part; the last part may be smaller.
        shuffle: seed of numpy's RandomState that permutes the examples; None keeps their order.

    Raises:
        ValueError: fewer examples than parts, or a logit that is not finite.
    """
    if splits < 1 or split_size < 0:
        raise ValueError(f"splits={splits}, split_size={split_size}; must be positive")
    check_features(logits, "logits", 1 if split_size else splits)
    count = len(logits)
    if split_size:
        edges = [*range(0, count, split_size), count]
    else:
        edges = [k * count // splits for k in range(splits + 1)]
    order = np.arange(count)
    if shuffle is not None:
        order = np.random.RandomState(shuffle).permutation(count)
    scores = [
        _score(logits[order[start:stop]].astype(np.float64))
        for start, stop in itertools.pairwise(edges)
    ]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)), len(scores))


def _score(logits: Float[np.ndarray, "count classes"]) -> float:
    """exp(mean sum_y p log p - sum_y q log q), q the mean of p."""
    logits -= logits.max(axis=1, keepdims=True)
    exponentials = np.exp(logits)
    sums = exponentials.sum(axis=1)
    inner = np.einsum("ij,ij->i", exponentials, logits) / sums - np.log(sums)
    marginal = (1.0 / sums) @ exponentials / len(logits)
    marginal = marginal[marginal > 0]
    return float(np.exp(inner.mean() - marginal @ np.log(marginal)))
