"""Metrics of samples and of models, and the job that runs them over a work directory.

A metric is made from literals and called as `metric(images, labels, config)` with uint8 images
[count height width channels], int labels [count] or None, and the config of the run; it returns a
dict of JSON values. Two kinds are of the run itself, in place of its samples: one with
`needs = "encoder"` is called as `metric(encoder)`, with a CLIP's `training.encoder.Encoder`; one
with `needs = "model"` as `metric(task, params, config)`. A new one is one file and one line here.
Metrics of features, `needs = "features"`, are `evaluation.protocols.Protocol`.
"""

from evaluation.caption_accuracy import SceneAccuracy
from evaluation.class_accuracy import ClassAccuracy
from evaluation.prior import PriorQuality
from evaluation.protocols import PROTOCOLS
from evaluation.reconstruction import Reconstruction
from evaluation.retrieval import Retrieval, ZeroShot
from evaluation.stack_metrics import (
    CaptionAccuracy,
    ClipScore,
    DecodedQuality,
    DrawnQuality,
    PictureQuality,
    PictureZeroShot,
)

METRICS = {
    "class_accuracy": ClassAccuracy,
    "prior_quality": PriorQuality,
    "reconstruction": Reconstruction,
    "retrieval": Retrieval,
    "scene_accuracy": SceneAccuracy,
    "zero_shot": ZeroShot,
    **PROTOCOLS,
}
# Called as `metric(pipeline, draw, config)` with a `pipelines.text_to_image.TextToImage` and the
# config of its stack; see `evaluation.stack_metrics`.
STACK_METRICS = {
    "caption_accuracy": CaptionAccuracy,
    "clip_score": ClipScore,
    "decoded_quality": DecodedQuality,
    "picture_quality": PictureQuality,
    "prior_quality": DrawnQuality,
    "zero_shot": PictureZeroShot,
}

__all__ = ["METRICS", "STACK_METRICS"]
