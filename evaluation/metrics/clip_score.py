"""CLIP score of images and the captions that they were made from."""

import dataclasses

import numpy as np
from jaxtyping import Float

from evaluation.metrics.checks import check_features
from evaluation.metrics.kernel import unit


@dataclasses.dataclass(frozen=True)
class ClipScore:
    """Mean over the pairs, and the standard error of that mean."""

    mean: float
    standard_error: float
    count: int


def clip_score(
    images: Float[np.ndarray, "count dim"], captions: Float[np.ndarray, "others width"]
) -> ClipScore:
    """100 max(cos, 0) of each image's embedding with its caption's (Hessel et al. 2021).

    The factor is 100, as usual in papers on text to image, and not Hessel's 2.5. Scores of
    different CLIPs do not compare.

    Args:
        images: embeddings.
        captions: embeddings, row i of image i.

    Raises:
        ValueError: the sets are not of one size, an embedding is zero or not finite.
    """
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images and {len(captions)} captions; must be pairs")
    if images.shape[1] != captions.shape[1]:
        raise ValueError(
            f"images have {images.shape[1]} dimensions and captions {captions.shape[1]}; both must "
            "come from one CLIP"
        )
    check_features(images, "images")
    check_features(captions, "captions")
    cosines = np.einsum("ij,ij->i", unit(images, "images"), unit(captions, "captions"))
    scores = 100.0 * np.maximum(cosines, 0.0)
    error = scores.std(ddof=1) / np.sqrt(len(scores))
    return ClipScore(float(scores.mean()), float(error), len(scores))
