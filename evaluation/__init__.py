"""Metrics of samples and of models, and the job that runs them over a work directory.

A metric is made from literals and called as `metric(images, labels, config)` with uint8 images
[count height width channels], int labels [count] or None, and the config of the run; it returns a
dict of JSON values. One with `needs = "model"` is of the model itself: it is called as
`metric(encoder)`, with the run's `training.encoder.Encoder`. A new one is one file and one line
here.
"""

from evaluation.caption_accuracy import SceneAccuracy
from evaluation.class_accuracy import ClassAccuracy
from evaluation.retrieval import Retrieval, ZeroShot

METRICS = {
    "class_accuracy": ClassAccuracy,
    "retrieval": Retrieval,
    "scene_accuracy": SceneAccuracy,
    "zero_shot": ZeroShot,
}

__all__ = ["METRICS"]
