"""Metrics of samples, and the job that runs them over a work directory.

A metric is made from literals and called as `metric(images, labels, config)` with uint8 images
[count height width channels], int labels [count] or None, and the config of the run; it returns a
dict of JSON values. A new one is one file and one line here.
"""

from evaluation.caption_accuracy import SceneAccuracy
from evaluation.class_accuracy import ClassAccuracy

METRICS = {"class_accuracy": ClassAccuracy, "scene_accuracy": SceneAccuracy}

__all__ = ["METRICS"]
