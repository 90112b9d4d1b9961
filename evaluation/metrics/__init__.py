"""Metrics of features and images: numpy arrays in, numbers out (docs/metrics.md).

No disk, no config, no network. The generated set comes first and the reference second everywhere.
"""

from evaluation.metrics.clip_score import ClipScore, clip_score
from evaluation.metrics.frechet import (
    Frechet,
    FrechetInfinity,
    Moments,
    frechet_distance,
    frechet_infinity,
)
from evaluation.metrics.inception_score import InceptionScore, inception_score
from evaluation.metrics.kernel import Kid, cmmd, kid, kid_full
from evaluation.metrics.neighbours import Prdc, PrecisionRecall, prdc, precision_recall
from evaluation.metrics.reconstruction import psnr, ssim
from evaluation.metrics.vendi import vendi_score

__all__ = [
    "ClipScore",
    "Frechet",
    "FrechetInfinity",
    "InceptionScore",
    "Kid",
    "Moments",
    "Prdc",
    "PrecisionRecall",
    "clip_score",
    "cmmd",
    "frechet_distance",
    "frechet_infinity",
    "inception_score",
    "kid",
    "kid_full",
    "prdc",
    "precision_recall",
    "psnr",
    "ssim",
    "vendi_score",
]
