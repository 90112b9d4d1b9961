"""Jobs of priors over a work directory: train, estimate, quantize, evaluate."""

import json

import numpy as np
import pytest

from diffusion.solvers import analytic as estimates
from evaluation import job
from pipelines import analytic, quantize, sampling
from training import command_line, loop, quantization
from training.components import ConfigError
from training.config import freeze, validate


def read(variant, **task):
    config = command_line.read(f"configs/prior_paper.py:{variant}")
    config.log.tensorboard = False
    config.train.batch_size = 32
    for name, value in task.items():
        config[name] = value
    validate(config)
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained prior of a few steps."""
    path = tmp_path_factory.mktemp("run")
    loop.train(freeze(read("smoke")), str(path))
    return path


def rows(path):
    text = (path / "evaluation" / "prior_quality.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_estimate_then_evaluate(run, capsys):
    config = read("smoke")
    analytic.estimate(freeze(config), run)
    path = run / analytic.FILE
    assert f"estimates='{path}'" in capsys.readouterr().out
    found = estimates.load(path)
    assert len(found.logsnr) == config.sample.steps
    assert np.all(found.eps_square > 0)

    job.evaluate(freeze(config), run)
    (row,) = rows(run)
    assert row["checkpoint"] == 20
    assert row["values"]["count"] == 64
    assert 0 < row["values"]["diversity"] < 2
    config.sample.solver = f"ddpm(variance='analytic', estimates={str(path)!r})"
    job.evaluate(freeze(config), run)
    job.evaluate(freeze(config), run)
    first, second = rows(run)
    assert first == row
    assert second["sample"]["solver"] == config.sample.solver


def test_the_text_in_place_of_a_prior(run):
    config = read("smoke")
    config.evaluate.metrics = ("prior_quality(split='test', count=64, seeds=1, text=True)",)
    job.evaluate(freeze(config), run)
    values = rows(run)[-1]["values"]
    assert values["cosine"] == pytest.approx(values["text_cosine"], abs=1e-5)
    assert values["recall"] == values["text_recall"]
    assert "diversity" not in values


def test_embeddings_are_no_images(run):
    with pytest.raises(ConfigError, match="draws embeddings, no images"):
        sampling.sample(freeze(read("smoke")), run)


def test_quantize_then_train(tmp_path, capsys):
    config = read("autoregressive_smoke")
    quantize.quantize(freeze(config), tmp_path)
    path = tmp_path / quantize.FILE
    share = quantization.load(path).explained
    assert f"6 components hold {share:.4%} of the variance" in capsys.readouterr().out
    config = read("autoregressive_smoke", task=f"autoregressive_prior(quantizer={str(path)!r})")
    config.train.steps = 10
    config.log.preview_every = 10
    loop.train(freeze(config), str(tmp_path / "run"))
    assert list((tmp_path / "run" / "previews").glob("*.png"))
    job.evaluate(freeze(config), tmp_path / "run")
    assert rows(tmp_path / "run")[0]["values"]["count"] == 64


def test_jobs_refuse_other_tasks(tmp_path):
    with pytest.raises(ConfigError, match="--mode=estimate is for runs of task 'prior'"):
        analytic.estimate(freeze(read("autoregressive_smoke")), tmp_path)
    with pytest.raises(ConfigError, match="--mode=quantize is for 'autoregressive_prior'"):
        quantize.quantize(freeze(read("smoke")), tmp_path)
