"""The comparison of priors: which are compared, on what, and how it is told."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import unclip_shapes
from experiments import priors, priors_report
from pipelines.text_to_image import TextToImage
from training import stack
from training.components import ConfigError
from training.config import freeze
from training.stack import check_stack, validate_stack
from training.workdir import Workdir

ATTRIBUTES = ("shape", "second_colour")


@pytest.fixture
def config():
    return unclip_shapes.get_config("smoke_priors")


def values(level):
    """What metrics say of a prior, by one number from 0 to 1."""
    quality = {
        "cosine": level,
        "cosine_unrelated": level / 2,
        "recall": {"1": level / 4, "5": level / 3, "10": level},
        "diversity": 1 - level,
    }
    right = {"all": level, "attributes": dict.fromkeys(ATTRIBUTES, level), "real": 1.0, "count": 10}
    return {"prior_quality": quality, "decoded_quality": quality, "caption_accuracy": right}


class Pipeline(TextToImage):
    """Of the pipeline what the comparison uses; nothing is loaded."""

    prior = None
    workdir = Workdir("clip")

    def __init__(self, config, root):
        self.clip, self.identity = self, {"decoder": {"checkpoint": 4}}

    def with_prior(self, prior):
        other = Pipeline(None, None)
        if isinstance(prior, priors.Stage):
            other.prior = prior
        elif prior:
            params = {"w": np.zeros((len(prior), 2))}
            other.prior = priors.Stage(prior, self.workdir, None, params, {"checkpoint": 7})
        return other


@pytest.fixture
def compared(config, monkeypatch):
    """(result, [(stage, specs of its metrics)]) without any network."""
    asked = []

    def measure(metrics, pipeline, config, directory):
        name = pipeline.prior.name if pipeline.prior else ""
        asked.append((name, tuple(metrics)))
        given = values(len(asked) / 10)
        return {spec: given[spec.partition("(")[0]] for spec in metrics}

    monkeypatch.setattr(priors, "TextToImage", Pipeline)
    monkeypatch.setattr(priors.evaluation.stack, "measure", measure)
    monkeypatch.setattr(priors, "embedded", lambda clip, source, rows: ([], np.eye(3)[list(rows)]))
    source = type("Source", (), {"name": "scenes", "__len__": lambda self: 3})
    monkeypatch.setattr(priors, "captioned", lambda config, split: source())
    return priors.compare(freeze(config), "root", "test", 10), asked


def test_the_stack_of_priors_is_valid_and_they_are_trained_alike(config):
    validate_stack(config)
    check_stack(freeze(config))
    full = unclip_shapes.get_config("priors")
    for made in (config, full):
        one = made.stages.prior
        for name in ("prior_ar", "prior_linear", "prior_mlp"):
            other = made.stages[name]
            assert other.train.to_dict() == one.train.to_dict()
            assert other.optimizer.to_dict() == one.optimizer.to_dict()
            assert other.evaluate.to_dict() == one.evaluate.to_dict()
    plain = unclip_shapes.get_config("").stages.to_dict()
    assert {n: s for n, s in full.stages.to_dict().items() if n in plain} == plain, (
        "what was trained without the other priors is not trained again"
    )
    path = "quantizer='/runs/prior_ar/quantizer.npz'"
    assert stack.stages(full, "/runs")["prior_ar"].task == f"autoregressive_prior({path})"


def test_priors_are_in_the_order_of_what_they_add(config):
    assert priors.priors_of(config) == [
        ("text embedding", ""),
        ("linear", "prior_linear"),
        ("MLP", "prior_mlp"),
        ("autoregressive", "prior_ar"),
        ("diffusion", "prior"),
    ]
    twice = config.copy_and_resolve_references()
    twice.stages.prior_mlp.model.name = "linear_prior"
    labels = [label for label, _ in priors.priors_of(twice)]
    assert labels[1:3] == ["linear (prior_linear)", "linear (prior_mlp)"]
    with pytest.raises(ConfigError, match=r"have 1 prior, and a comparison needs two or more"):
        priors.priors_of(unclip_shapes.get_config("smoke"))


def test_every_prior_is_measured_on_the_same(compared):
    result, asked = compared
    names = ["", "prior_linear", "prior_mlp", "prior_ar", "prior", priors.TRUE]
    assert [name for name, _ in asked] == names
    assert {specs for _, specs in asked} == {
        (
            "prior_quality(split='test', count=10)",
            "caption_accuracy(split='test', count=10)",
            "decoded_quality(split='test', count=10)",
        )
    }
    rows = {row["prior"]: row for row in result["rows"]}
    assert rows["diffusion"]["parameters"] == 2 * len("prior")
    assert rows["diffusion"]["checkpoint"] == 7
    assert rows["text embedding"]["parameters"] == rows[priors.TRUE]["parameters"] == 0
    assert rows["autoregressive"]["caption_accuracy"]["all"] == 0.4
    assert result["stages"] == {"decoder": {"checkpoint": 4}}


def test_the_true_embedding_of_a_caption_is_that_of_its_own_picture():
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    given = priors.TrueEmbeddings().sample(table, {}, jax.random.key(0), np.int32([3, 0, 3]))
    np.testing.assert_array_equal(given, table[[3, 0, 3]])


def test_intervals():
    """Wilson's for 5 of 10, and for none of 10, to the digits of published tables."""
    assert priors_report.interval(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert priors_report.interval(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    low, high = priors_report.interval(1.0, 10)
    assert (low, high) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_the_files_say_what_was_measured(compared, tmp_path):
    result, _ = compared
    out = priors.write(result, tmp_path)
    assert json.loads((out / "priors.json").read_text())["rows"] == result["rows"]
    lines = (out / "priors.md").read_text().splitlines()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    first = {row[0]: dict(zip(table[0], row, strict=True)) for row in table[2:8]}
    mlp = first["MLP"]
    assert mlp["cosine (others)"] == "0.300 (0.150)"
    assert mlp["diversity"] == "0.700"
    assert (mlp["R@5"], mlp["picture R@1"]) == ("10.0%", "7.5%")
    assert mlp["caption right (95%)"] == "30.0% (10.8 to 60.3)"
    assert first["text embedding"]["parameters"] == ""
    second = {row[0]: row[1:] for row in table[8:]}
    assert second["right"] == ["shape", "second colour"]
    assert second[priors.TRUE] == ["60.0%", "60.0%"]
    assert "reads 100.0% of the split's own pictures" in lines[-1]
    assert (out / "priors.png").read_bytes().startswith(b"\x89PNG")


def test_mistakes_on_the_command_line(tmp_path):
    single = ["--config=configs/digits.py", f"--workdir={tmp_path}"]
    with pytest.raises(ConfigError, match=r"configs/digits.py: is a single run"):
        priors.main(single)
    stacked = ["--config=configs/unclip_shapes.py:smoke_priors", f"--workdir={tmp_path}"]
    with pytest.raises(ConfigError, match=r"--count=1: must be 2 or more"):
        priors.main([*stacked, "--count=1"])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_command_trains_measures_and_goes_on(tmp_path):
    config = "configs/unclip_shapes.py:smoke_priors"
    command = [sys.executable, "-m", "experiments.priors", f"--config={config}"]
    command += [f"--workdir={tmp_path}", "--count=4"]
    stages = unclip_shapes.get_config("smoke_priors").order
    for name in stages:
        fields = {"train.steps": 4, "train.batch_size": 8, "log.preview_every": 0}
        fields |= {"checkpoint.every": 4, "log.every": 4, "log.tensorboard": False}
        command += [f"--config.stages.{name}.{field}={v}" for field, v in fields.items()]
    command += ["--config.stages.clip.embed.statistics=32"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "report" / "priors.json").read_text())
    rows = {row["prior"]: row for row in result["rows"]}
    assert list(rows) == [*priors.KINDS.values(), priors.TRUE]
    assert rows[priors.TRUE]["prior_quality"]["cosine"] == pytest.approx(1.0)
    assert rows[priors.TRUE]["prior_quality"]["diversity"] == pytest.approx(0.0, abs=1e-6)
    assert rows["linear"]["parameters"] == 64 * 65
    assert (tmp_path / "prior_ar" / "quantizer.npz").exists()
    pictures = sorted((tmp_path / "generated").glob("*/chunks/*.npz"))
    assert len({path.parent for path in pictures}) == len(rows)
    before = [path.stat().st_mtime_ns for path in pictures]
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("done already") == len(stages)
    assert [path.stat().st_mtime_ns for path in pictures] == before
    second = json.loads((tmp_path / "report" / "priors.json").read_text())
    assert second["rows"] == result["rows"]
