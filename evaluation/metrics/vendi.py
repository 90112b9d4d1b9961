"""Vendi score: how many different examples a set is worth."""

import numpy as np
from jaxtyping import Float

from evaluation.metrics.checks import check_features
from evaluation.metrics.kernel import unit


def vendi_score(features: Float[np.ndarray, "count dim"]) -> float:
    """exp of the entropy of the eigenvalues of K / count, K the cosine similarities.

    Friedman and Dieng 2023, definition 3.1. Equals `vendi_score.vendi.score_X` and `score_dual`
    (q=1, normalised). K / count and the dim x dim matrix X^T X / count have the same eigenvalues
    but for zeros, so the smaller one is taken. In [1, min(count, dim)].

    Raises:
        ValueError: a row is zero or not finite.
    """
    check_features(features, "features", 1)
    x = unit(features, "features")
    products = x.T @ x if len(x) > x.shape[1] else x @ x.T
    values = np.linalg.eigvalsh(products / len(x))
    values = values[values > 0]
    return float(np.exp(-(values @ np.log(values))))
