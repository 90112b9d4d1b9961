"""What no task has to tell a network is refused with the config."""

import pytest

from configs import base, networks
from training import conditions, tasks
from training.components import ConfigError
from training.config import validate
from training.tasks.decoder import DecoderTask
from training.tasks.diffusion import DiffusionTask


def make_config(model="unet", task="diffusion", **fields):
    config = base.get_config()
    config.task = task
    config.model = networks.FIELDS[model]()
    config.model.update(fields)
    return config


def refused(config) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(config)
    return str(caught.value)


@pytest.mark.parametrize(
    ("model", "field", "value", "untold", "decoder"),
    [
        ("unet", "context", "kv", "none", "unclip_decoder"),
        ("unet", "context", "cross", "none", "unclip_decoder"),
        ("unet", "embedding_dim", 4, 0, "unclip_decoder"),
        ("dit", "embedding_dim", 4, 0, "unclip_dit"),
    ],
)
@pytest.mark.parametrize("task", ["diffusion", "meanflow(equal=0.5)", "super_resolution(low=4)"])
def test_what_the_task_cannot_tell_is_refused(task, model, field, value, untold, decoder):
    config = make_config(model, task, **{field: value})
    assert refused(config) == (
        f"config.model.{field} = {value!r}: must be {untold!r} with config.task = {task!r}, which "
        "has nothing to tell there; config.task='decoder(...)' tells config.model.name="
        f"{decoder!r} of a CLIP embedding and a caption"
    )


@pytest.mark.parametrize("model", ["unclip_decoder", "unclip_dit"])
@pytest.mark.parametrize("task", ["diffusion", 'consistency(teacher="a")'])
def test_a_decoder_is_for_its_own_task(task, model):
    message = refused(make_config(model, task))
    assert message.startswith(f"config.model.name = {model!r}: is told of a CLIP embedding")
    assert message.endswith(f"config.task = {task!r} has not; set config.task='decoder(...)'")
    validate(make_config(model, "decoder"))


def test_an_augmentation_that_is_told_must_be_made():
    config = make_config("song_unet", augment_dim=9)
    assert refused(config).startswith("config.model.augment_dim = 9: must be 0 with config.data.")
    config.data.device_augmentation = "edm(probability=0.1)"
    validate(config)


def test_a_decoder_has_either_context():
    for context in ("kv", "cross"):
        validate(make_config("unclip_decoder", "decoder", context=context))


def test_a_task_that_is_not_known_here_has_rules_of_its_own():
    validate(make_config(task="told_of_depth", context="kv", context_dim=4))


def test_tasks_of_labels_alone_are_those_whose_condition_is_of_a_diffusion_model():
    for name in conditions.LABELS_ALONE:
        assert issubclass(tasks.TASKS[name], DiffusionTask)
        assert not issubclass(tasks.TASKS[name], DecoderTask)
