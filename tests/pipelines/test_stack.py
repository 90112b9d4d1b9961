"""What a stack refuses, and where it stops, before its stages are trained."""

import pytest

from pipelines import stack as stacks
from tests.pipelines.tiny_stack import tiny
from training import loop
from training.components import ConfigError
from training.config import freeze
from training.exit_codes import Preempted


@pytest.fixture
def config(one_device):
    return tiny()


def test_a_stage_needs_its_clip(config, tmp_path):
    config.only = "prior"
    with pytest.raises(ConfigError, match=r"stage 'clip' is not trained yet.*--config.only=clip"):
        stacks.train(freeze(config), tmp_path)
    assert not (tmp_path / "prior").exists()


def test_pairs_that_cannot_be_embedded_are_refused_before_clip_is_trained(config, tmp_path):
    config.splits = ("compositional", "tset")
    message = r"config\.splits: config\.stages\.clip\.data\.source = .*'tset'"
    with pytest.raises(ConfigError, match=message):
        stacks.train(freeze(config), tmp_path / "stack")
    with pytest.raises(ConfigError, match=r"--workdir=gs://b/run: .*config\.embeddings = 'step'"):
        stacks.train(freeze(tiny()), "gs://b/run")
    assert not (tmp_path / "stack").exists()


def test_nothing_begins_after_a_signal_that_came_with_the_last_step(config, tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(loop, "train", lambda stage, path: begun.append(path) or True)
    monkeypatch.setattr(stacks, "_embed", lambda *_: begun.append("embeddings"))
    for only in ("", "clip"):
        config.only = only
        with pytest.raises(
            Preempted, match="after the stage 'clip', which is done; start the same"
        ):
            stacks.train(freeze(config), tmp_path)
    assert begun == [str(tmp_path / "clip")] * 2
    # Where nothing is left the stack is done.
    config.only = "upsampler"
    stacks.train(freeze(config), tmp_path)


def test_a_network_that_cannot_be_is_refused_before_another_stage_is_trained(config, tmp_path):
    config.stages.decoder.model.num_heads = 3
    with pytest.raises(ConfigError, match=r"config\.stages\.decoder\.model.*num_heads=3"):
        stacks.train(freeze(config), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_upsampler_needs_no_clip(config, tmp_path):
    config.only = "upsampler"
    stacks.train(freeze(config), tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["upsampler"]
