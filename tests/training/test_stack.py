"""training.stack: the config of a stack, and those of its stages."""

import json

import pytest

from configs import unclip_shapes
from training import command_line, stack
from training.components import ConfigError
from training.config import flatten, freeze, load, save


@pytest.fixture
def config():
    """A stack that may be changed."""
    return unclip_shapes.get_config("smoke")


def test_a_stack_is_valid_and_survives_being_stored(config, tmp_path):
    stack.validate_stack(config)
    stack.check_stack(config)
    save(config, tmp_path / "config.json")
    assert flatten(load(tmp_path / "config.json")) == flatten(config)
    assert freeze(config).order == ("clip", "prior", "decoder", "upsampler")


def test_fields_of_stages_are_set_on_the_command_line(config):
    command_line.override(
        config, ["--config.stages.prior.train.steps=7", "--config.only=prior,clip"]
    )
    assert config.stages.prior.train.steps == 7
    assert stack.only(config) == ["clip", "prior"], "in the order of the stack"
    with pytest.raises(ConfigError, match=r"did you mean config.stages.prior.train.steps"):
        command_line.override(config, ["--config.stages.prior.trian.steps=7"])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("only", "piror", "config.only: there is no stage 'piror'; did you mean 'prior'"),
        ("embeddings", "disk", "config.embeddings = 'disk': must be 'records' or 'step'"),
        ("order", ("clip", "prior"), "config.order = .* must name each of config.stages once"),
        ("generate.prior", "priors", "config.generate.prior: there is no stage 'priors'"),
        ("generate.count", 0, "config.generate.count = 0: must be 1 or more"),
        ("generate.prompts", ("a circle", " "), "config.generate.prompts: a prompt is empty"),
        ("stages.prior.train.steps", -1, "config.stages.prior.train.steps = -1: must be 0 or more"),
        (
            "stages.clip.embed.text_features",
            False,
            "config.stages.clip.embed.text_features = False: 'prior' reads the features",
        ),
        ("stages.decoder.task", "clip", "one of them must be of task 'clip', here are 2"),
    ],
)
def test_mistakes_are_named_with_their_field(config, field, value, message):
    section, _, name = field.rpartition(".")
    part = config
    for step in filter(None, section.split(".")):
        part = part[step]
    part[name] = value
    with pytest.raises(ConfigError, match=message):
        stack.validate_stack(config)


def test_a_component_of_a_stage_is_checked(config):
    config.stages.prior.sample.solver = "dimm(eta=0.0)"
    with pytest.raises(ConfigError, match=r"config.stages.prior.sample.solver .* 'ddim'"):
        stack.check_stack(config)


def test_messages_about_a_stage_name_its_field():
    told = stack.in_stage("prior", "config.train.steps: 4 -> 5, in runs/prior/config.json")
    assert told == "config.stages.prior.train.steps: 4 -> 5, in runs/prior/config.json"


def test_a_name_that_the_stack_itself_uses_is_refused(config):
    fields = config.to_dict()
    fields["stages"]["generated"] = fields["stages"].pop("prior")
    fields["order"] = ("clip", "generated", "decoder", "upsampler")
    fields["generate"]["prior"] = "generated"
    with pytest.raises(ConfigError, match=r"config.stages.generated: must be a plain name"):
        stack.validate_stack(load(json.loads(json.dumps(fields))))


def test_records_and_the_frozen_clip_are_two_sources_of_the_same_stage(config, tmp_path):
    from_records = stack.stages(config, tmp_path)["prior"]
    config.embeddings = "step"
    in_step = stack.stages(config, tmp_path)["prior"]
    data = config.stages.clip.data
    assert from_records.data.source == f"records(path='{tmp_path}/clip/embeddings', split='train')"
    assert in_step.data.source == data.source
    assert in_step.data.tokenizer == f"file(path='{tmp_path}/clip/tokenizer.json')"
    assert in_step.task == f"prior(candidates=2, clip='{tmp_path}/clip')"
    for made in (from_records, in_step):
        assert (made.data.image_size, made.data.context) == (data.image_size, data.context)


def test_a_relative_root_is_the_same_place_from_any_directory(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(tmp_path / "runs/clip") in stack.stages(config, "runs")["prior"].data.source
    assert "gs://b/r/clip/emb" in stack.stages(config, "gs://b/r")["prior"].data.source
