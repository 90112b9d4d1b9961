"""How good a prior is: its image embeddings against the true ones of held-out captions."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Float, Int

from training.components import ConfigError
from training.tasks.caption_prior import CaptionPrior
from training.tasks.regression_prior import text_as_image

# Rows of a matrix of cosines at a time.
_ROWS = 1024


def unit(x: Float[np.ndarray, "*batch dim"]) -> Float[np.ndarray, "*batch dim"]:
    """Of length 1, float64."""
    x = x.astype(np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.finfo(float).tiny)


def cosine(
    a: Float[np.ndarray, "count dim"], b: Float[np.ndarray, "count dim"]
) -> Float[np.ndarray, " count"]:
    """Of each pair of rows."""
    return np.sum(unit(a) * unit(b), axis=-1)


def unrelated_cosine(a: Float[np.ndarray, "count dim"], b: Float[np.ndarray, "count dim"]) -> float:
    """Mean over all pairs of rows i of a and j of b with i != j."""
    total = unit(a).sum(0) @ unit(b).sum(0) - cosine(a, b).sum()
    return float(total / (len(a) * (len(a) - 1)))


def ranks(
    predicted: Float[np.ndarray, "count dim"], gallery: Float[np.ndarray, "count dim"]
) -> Int[np.ndarray, " count"]:
    """How many others of the gallery are as near to prediction i as entry i, by cosine; 0 is best.

    Who is just as near counts against: a prediction that says nothing gains nothing by ties.
    """
    predicted, gallery = unit(predicted), unit(gallery)
    found = []
    for start in range(0, len(predicted), _ROWS):
        rows = predicted[start : start + _ROWS] @ gallery.T
        own = rows[np.arange(len(rows)), start + np.arange(len(rows))]
        found.append(np.sum(rows >= own[:, None], axis=1) - 1)
    return np.concatenate(found)


def recall(rank: Int[np.ndarray, " count"], k: int) -> float:
    """Share of the predictions that have their own entry among the k nearest."""
    return float(np.mean(rank < k))


def diversity(draws: Float[np.ndarray, "seeds count dim"]) -> float:
    """Mean of 1 - cosine over pairs of draws for the same caption; 0 where nothing is random.

    Raises:
        ValueError: fewer than two draws.
    """
    seeds = len(draws)
    if seeds < 2:
        raise ValueError(f"{seeds} draw of each caption: diversity needs two or more")
    # |sum of unit vectors|^2 = seeds + 2 (sum of the cosines of pairs)
    squared = np.square(unit(draws).sum(0)).sum(-1)
    return float(np.mean(1.0 - (squared - seeds) / (seeds * (seeds - 1))))


def quality(
    draws: Float[np.ndarray, "seeds count dim"],
    images: Float[np.ndarray, "count dim"],
    texts: Float[np.ndarray, "count dim"],
    at: Sequence[int] = (1, 5, 10),
) -> dict[str, Any]:
    """All numbers of a prior: of its first draws, and diversity over all of them.

    cosine: of prediction and true embedding; `cosine_unrelated`, the same with the images of other
        captions, is what a prediction of the mean embedding gets, too.
    text_cosine, text_recall: of the text embedding in place of a prediction.
    recall: of the true embedding among all images of the set by prediction.
    """
    predicted = draws[0]
    rank, text_rank = ranks(predicted, images), ranks(texts, images)
    values = {
        "count": len(images),
        "cosine": float(cosine(predicted, images).mean()),
        "cosine_unrelated": unrelated_cosine(predicted, images),
        "cosine_to_text": float(cosine(predicted, texts).mean()),
        "text_cosine": float(cosine(texts, images).mean()),
        "text_cosine_unrelated": unrelated_cosine(texts, images),
        "recall": {str(k): recall(rank, k) for k in at},
        "text_recall": {str(k): recall(text_rank, k) for k in at},
        "median_rank": float(np.median(rank)),
    }
    return values | ({"diversity": diversity(draws)} if len(draws) > 1 else {})


@dataclasses.dataclass(frozen=True)
class PriorQuality:
    """`quality` of a run's prior on a held-out split of its data.

    Attributes:
        split: of `data.source`.
        count: how many of its examples, the first ones.
        seeds: draws of each caption.
        batch_size: captions at a time.
        text: measure the text embedding itself instead of the prior.
    """

    # A metric of the model, not of samples: called with task, parameters and config.
    needs: ClassVar[str] = "model"

    split: str = "test"
    count: int = 1000
    seeds: int = 2
    batch_size: int = 256
    text: bool = False

    def __call__(self, task: Any, params: Any, config: Any) -> dict[str, Any]:
        """See `quality`.

        Raises:
            ConfigError: the run is of no prior.
        """
        if not isinstance(task, CaptionPrior):
            raise ConfigError(
                f"config.evaluate.metrics: prior_quality is of priors, and this run has task "
                f"{config.task!r}"
            )
        pairs = task.embeddings.read(self.count, self.split)
        sample = text_as_image if self.text else task.sample
        draws = [
            self._draw(sample, params, pairs, jax.random.fold_in(jax.random.key(0), seed))
            for seed in range(self.seeds)
        ]
        return quality(np.stack(draws), pairs["image_embedding"], pairs["text_embedding"])

    def _draw(self, sample, params, pairs, key) -> Float[np.ndarray, "count dim"]:
        count = len(pairs["image_embedding"])
        size = min(self.batch_size, count)
        found = []
        for start in range(0, count, size):
            # The last batch is filled up from the start: one shape, one program.
            rows = np.arange(start, start + size, dtype=np.int32)
            part = {name: value[rows % count] for name, value in pairs.items()}
            found.append(np.asarray(sample(params, part, key, rows)))
        return np.concatenate(found)[:count]
