"""Pairs of embeddings whose law is known: what a prior can be measured against exactly."""

from collections.abc import Collection

import numpy as np
from jaxtyping import Float

from input_pipeline.sources.base import Source, check_name

FIELDS = ("image_embedding", "text_embedding", "text_features", "text_mask")
_SPLITS = ("train", "test")


class GaussianPairs(Source):
    """image = text @ map + noise eps, text and eps standard normal; made by `gaussian_pairs`.

    The features of each token of a caption are its text embedding; what follows the end of the
    text is noise, so that a network which looks there learns worse.

    Attributes:
        map: [dim, dim], a rotation with singular values from 1.5 to 0.5.
    """

    fields = FIELDS

    def __init__(self, dim: int, noise: float, context_length: int, split: str, count: int):
        self.name = (
            f"gaussian_pairs(dim={dim}, noise={noise}, context_length={context_length}, "
            f"split={split!r}, count={count})"
        )
        self.dim, self.noise, self.context_length = dim, noise, context_length
        self._split, self._count = _SPLITS.index(split), count
        random = np.random.RandomState(dim)
        left, right = (np.linalg.qr(random.standard_normal((dim, dim)))[0] for _ in range(2))
        self.map: Float[np.ndarray, "dim dim"] = left * np.linspace(1.5, 0.5, dim) @ right

    @property
    def fingerprint(self) -> str:
        """All arguments."""
        return f"v1-{self.name}"

    def __len__(self) -> int:
        return self._count

    def example(self, index: int, fields: Collection[str]) -> dict:
        """Float32 arrays, and the mask of the text's tokens."""
        random = np.random.Generator(np.random.Philox(key=(self._split, index)))
        text, eps = random.standard_normal((2, self.dim))
        length = random.integers(1, self.context_length + 1)
        mask = np.arange(self.context_length) < length
        beyond = random.standard_normal((self.context_length, self.dim))
        image = text @ self.map + self.noise * eps
        return {
            "image_embedding": image.astype(np.float32),
            "text_embedding": text.astype(np.float32),
            "text_features": np.where(mask[:, None], text, beyond).astype(np.float32),
            "text_mask": mask,
        }


def gaussian_pairs(
    dim: int = 16,
    noise: float = 0.5,
    context_length: int = 8,
    split: str = "train",
    count: int = 65_536,
) -> GaussianPairs:
    """Generated pairs of a text embedding and an image embedding that depends on it linearly.

    Args:
        dim: of both embeddings and of each token's features.
        noise: standard deviation of the image embedding, given the text.
        context_length: tokens of a caption; a random number of them, at least one, is text.
        split: 'train' or 'test'.
        count: how many examples there are.
    """
    check_name("split", split, _SPLITS)
    for argument, value in (("dim", dim), ("context_length", context_length), ("count", count)):
        if value < 1:
            raise ValueError(f"{argument}: {value} must be 1 or more")
    if not noise >= 0:
        raise ValueError(f"noise: {noise} must be 0 or more")
    return GaussianPairs(dim, noise, context_length, split, count)
