import json
import logging
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import diffusion
from configs import digits
from evaluation import job as evaluation
from pipelines import sampling
from tests.training.test_checkpoints import values
from training import checkpoints, loop
from training import run as runs
from training.components import ConfigError
from training.config import freeze, validate
from training.exit_codes import TrainingFailed


def make_config(**train):
    """The digits with as little network and as few steps as show everything."""
    config = digits.get_config("smoke")
    config.model.update(channels=32, channel_mult=(1,), attention_resolutions=())
    config.train.update(steps=6, batch_size=8, **train)
    config.checkpoint.every = 3
    config.log.update(every=2, preview_every=6, preview_count=4)
    config.sample.update(steps=2)
    return config


def frozen(config):
    validate(config)
    return freeze(config)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run with a profile."""
    config = make_config(max_bad_steps=2)
    config.profile = 2
    workdir = tmp_path_factory.mktemp("trained")
    loop.train(frozen(config), str(workdir))
    return config, workdir


def test_work_directory_has_everything(trained):
    _, workdir = trained
    names = {path.name for path in workdir.iterdir()}
    assert {"config.json", "run.json", "parameters.txt", "profile", "previews"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert checkpoints.steps(workdir / "checkpoints") == [3, 6]
    assert Image.open(workdir / "previews" / "00000006.png").size[0] > 64
    assert list((workdir / "profile").rglob("*.xplane.pb"))


def test_metrics_and_timing(trained):
    _, workdir = trained
    metrics, timing = (
        [json.loads(line) for line in (workdir / name).read_text().splitlines()]
        for name in ("metrics.jsonl", "timing.jsonl")
    )
    assert [line["step"] for line in metrics] == [2, 4, 6]
    assert {"loss", "mse", "grad_norm", "learning_rate", "bad_steps"} <= metrics[0].keys()
    # Zero-initialized output: the loss begins at the variance of the noise.
    assert 0.8 < metrics[0]["loss"] < 1.2
    assert all(line["images_per_second"] > 0 for line in timing)
    parts = {"seconds/compile", "seconds/data", "seconds/step", "seconds/checkpoint"}
    assert parts <= {key for line in timing for key in line}


def test_samples_and_their_judgement(trained, capsys):
    config, workdir = trained
    sampling.sample(frozen(config), str(workdir))
    grid = Path(capsys.readouterr().out.splitlines()[-1])
    assert Image.open(grid).size[0] > 64
    assert np.load(grid.parent / "samples.npz")["arr_0"].shape == (20, 8, 8, 1)
    evaluation.evaluate(frozen(config), str(workdir))
    rows = (workdir / "evaluation" / "class_accuracy.jsonl").read_text().splitlines()
    (row,) = map(json.loads, rows)
    # After six steps the samples are noise; the classifier knows real digits all the same.
    assert 0 <= row["values"]["accuracy"] < 0.6
    assert row["values"]["classifier_accuracy"] > 0.95


def test_finished_run_is_left_alone(trained, caplog):
    config, workdir = trained
    before = (workdir / "metrics.jsonl").read_bytes()
    with caplog.at_level(logging.INFO):
        loop.train(frozen(config), str(workdir))
    assert "nothing left to train" in caplog.text
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_other_network_is_refused(trained):
    _, workdir = trained
    other = make_config(max_bad_steps=2)
    other.model.channels = 64
    with pytest.raises(ConfigError, match=r"config\.model\.channels: 32 -> 64"):
        loop.train(frozen(other), str(workdir))
    assert json.loads((workdir / "config.json").read_text())["model"]["channels"] == 32


def test_wrong_number_of_classes_is_found_before_anything_is_written(tmp_path):
    config = make_config()
    config.model.num_classes = 7
    with pytest.raises(ConfigError, match=r"config\.model\.num_classes: 7.*10 classes"):
        loop.train(frozen(config), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_batch_must_divide_over_the_devices(tmp_path):
    config = make_config(accumulate=2)
    with pytest.raises(ConfigError, match=r"config\.train\.batch_size: 8.*4 examples.*8 devices"):
        loop.train(frozen(config), str(tmp_path))


def test_nan_stops_the_run_and_names_the_step_and_the_checkpoint(trained, tmp_path, monkeypatch):
    to_model = diffusion.to_model

    def poisoned(images):
        return to_model(images) * np.nan

    config, workdir = trained
    run = shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "6")
    monkeypatch.setattr(diffusion, "to_model", poisoned)
    with pytest.raises(TrainingFailed, match=r"from 4 on, 2 in a row.*last good.*step 3"):
        loop.train(frozen(config), str(run))
    assert checkpoints.steps(run / "checkpoints") == [3]


def remembering(**train):
    """A run whose task keeps the losses of each time, with averages for a reconstruction."""
    config = make_config(**train)
    config.data.workers = 0
    config.diffusion.update(
        schedule="cosine(timesteps=4)", time_sampler="loss_second_moment(history=2)"
    )
    config.optimizer.decay = "constant"
    config.ema = ConfigDict({"short": "power(std=0.05)", "long": "power(std=0.1)"})
    config.checkpoint.update(every=2, keep=1, keep_every=2)
    # The preview has to do with the averages that it finds.
    config.sample.update(ema="posthoc(std=0.07)", count=8, batch_size=8)
    return config


def state_of(config, workdir, step):
    run = runs.build(frozen(config))
    state, position = checkpoints.Checkpoints(workdir / "checkpoints").restore(
        run.abstract_state, step
    )
    return values(state), position


def test_stopped_and_resumed_with_a_task_state_and_sampled_post_hoc(tmp_path, monkeypatch):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    config = remembering()
    loop.train(frozen(config), str(unbroken))
    first = remembering()
    first.train.steps = 4
    assert not loop.train(frozen(first), str(broken))
    save_now = checkpoints.Checkpoints.save_now

    def told_to_stop(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        save_now(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "save_now", told_to_stop)
        # With the last step: the run is whole, and whoever has more to do is told.
        assert loop.train(frozen(config), str(broken))

    expected, found = (state_of(config, path, 6) for path in (unbroken, broken))
    # Six batches of 8: each of the four times has its history, so the sampler does draw by it.
    assert expected[0].task["seen"].sum() == 48
    assert (expected[0].task["seen"] >= 2).all()
    jax.tree.map(np.testing.assert_array_equal, expected, found)
    metrics = [(path / "metrics.jsonl").read_bytes() for path in (unbroken, broken)]
    assert metrics[0] == metrics[1]

    sampling.sample(frozen(config), str(unbroken))
    (out,) = (unbroken / "samples").iterdir()
    assert "posthoc_std_0.07" in out.name
    info = json.loads((out / "info.json").read_text())
    assert (info["checkpoint"], info["snapshots"]) == (6, [2, 4, 6])
    config.sample.checkpoint = 2
    with pytest.raises(ConfigError, match=r"posthoc.*up to 2, and .* has 1; .*keep_every"):
        sampling.sample(frozen(config), str(unbroken))
