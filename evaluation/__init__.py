"""Metrics of samples, and the job that runs them over a work directory.

A metric is made from literals and called as `metric(images, labels, config)` with uint8 images
[count height width channels], int labels [count] or None, and the config of the run; it returns a
dict of JSON values. One whose attribute `needs` is 'model' is of a trained model in place of its
samples, and called as `metric(task, params, config)`. A new one is one file and one line here.
"""

from evaluation.class_accuracy import ClassAccuracy
from evaluation.prior import PriorQuality

METRICS = {"class_accuracy": ClassAccuracy, "prior_quality": PriorQuality}

__all__ = ["METRICS"]
