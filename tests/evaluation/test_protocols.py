"""Every protocol fits its network, and gives the values that its name promises."""

import dataclasses

import numpy as np
import pytest

from evaluation import metrics
from evaluation.extractors import EXTRACTORS
from evaluation.extractors.base import Extractor
from evaluation.feature_metrics import FEATURE_METRICS
from evaluation.protocols import PROTOCOLS, Protocol
from evaluation.references import Reference
from tests.golden.evaluation.sets import features
from training.components import ConfigError, build, parse, resolve

# Values of each, beside their parts.
VALUES = {
    "adm": {"fid", "sfid", "inception_score", "precision", "recall"},
    "edm": {"fid"},
    "torch_fidelity": {"fid", "kid", "kid_std", "inception_score", "inception_score_std"},
    "pytorch_fid": {"fid"},
    "clean": {"fid", "kid"},
    "prdc": {"precision", "recall", "density", "coverage"},
    "fid_infinity": {"fid_infinity", "fid_infinity_standard_error"},
    "fd_dinov2": {"fd_dinov2"},
    "cmmd": {"cmmd"},
    "vendi": {"vendi"},
    "classifier(workdir='run')": {
        "classifier_frechet",
        "classifier_kernel",
        "classifier_score",
        "precision",
        "recall",
    },
}
OUTPUTS = {
    "inception": ("pool3", "spatial", "logits"),
    "dinov2": ("embedding",),
    "clip": ("embedding",),
    "classifier": ("embedding", "logits"),
}
GENERATED, REAL = features(1, 1100, 8), features(2, 1200, 8)


def reference(outputs):
    moments = {name: metrics.Moments.of(REAL) for name in outputs}
    return Reference("real", {}, moments, dict.fromkeys(outputs, REAL))


def test_all_are_looked_at():
    assert {parse(spec).name for spec in VALUES} == PROTOCOLS.keys() - {"features"}


@pytest.mark.parametrize("spec", VALUES)
def test_values(spec, monkeypatch):
    protocol = build(PROTOCOLS, spec, "metrics")
    resolve(EXTRACTORS, protocol.extractor, "extractor", ("directory",))
    outputs = OUTPUTS[parse(protocol.extractor).name]
    made = Extractor(protocol.extractor, dict.fromkeys(outputs, 8), {}, None, lambda params, x: {})
    monkeypatch.setitem(EXTRACTORS, parse(protocol.extractor).name, lambda **_: made)
    assert protocol.make_extractor("") is made
    protocol.check_outputs(made)
    real = reference(protocol.outputs())
    protocol.check(real, len(GENERATED), "samples")
    found = protocol(dict.fromkeys(protocol.outputs(), GENERATED), real)
    assert VALUES[spec] <= found.keys()
    assert found["count"] == 1100
    assert all(np.isfinite(value) for value in found.values())


def test_which_set_is_which():
    """Generated images of one kind only: all are good, and most of the data is missed."""
    nearest = np.argsort(((REAL - REAL[0]) ** 2).sum(1))[:30]
    generated = {"pool3": REAL[nearest] + np.float32(1e-3)}
    found = PROTOCOLS["prdc"]()(generated, reference(("pool3",)))
    assert found["precision"] > 0.9
    assert found["recall"] < 0.5


def test_published_numbers_are_of_other_counts(caplog):
    protocol = PROTOCOLS["edm"]()
    protocol.check(reference(("pool3",)), 1000, "samples")
    assert "published numbers are of 50000 images, these of 1000" in caplog.text


@pytest.mark.parametrize("name", FEATURE_METRICS)
def test_every_metric_says_how_many_images_it_needs(name):
    called = {"called": "x"} if name.startswith("frechet") else {}
    metric = FEATURE_METRICS[name](**called)
    least = metric.least
    few = {metric.output: GENERATED[: least - 1]}
    real = reference((metric.output,))
    with pytest.raises(ConfigError, match=rf"needs at least {least} images, and there are"):
        Protocol("p", "inception", (_spell(name, metric),)).check(real, least - 1, "samples")
    if least > 2:
        with pytest.raises(ValueError, match=r"\d"):
            metric(few, real)
    metric({metric.output: GENERATED[:least]}, real)


def _spell(name, metric):
    fields = {f.name: getattr(metric, f.name) for f in dataclasses.fields(metric) if f.init}
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in fields.items())})"
