import json

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict, FrozenConfigDict

from configs import base
from training.components import ConfigError
from training.config import (
    check_resumable,
    differences,
    flatten,
    freeze,
    load,
    no_field,
    save,
    validate,
)

POWER = ConfigDict({"short": "power(std=0.05)", "long": "power(std=0.1)"})


def changed(**fields) -> ConfigDict:
    """The base config with changes; 'train__steps=5' is train.steps."""
    config = base.get_config()
    for path, value in fields.items():
        *sections, name = path.split("__")
        section = config
        for part in sections:
            section = section[part]
        with section.ignore_type():
            section[name] = value
    return config


def test_flatten():
    assert flatten({"a": 1, "b": {"c": (2,), "d": {}}}) == {"a": 1, "b.c": (2,)}


def test_save_and_load_give_the_equal_config(tmp_path):
    config = changed(
        model__channel_mult=(1, 2),
        data__augmentations=("flip",),
        optimizer__learning_rate=1.0,
        ema=ConfigDict({"fast": "constant(decay=0.9)", "slow": "constant"}),
        sample__ema="fast",
    )
    for kind in (config, freeze(config)):
        save(kind, tmp_path / "config.json")
        loaded = load(str(tmp_path / "config.json"))
        assert loaded == config
        assert type(loaded.optimizer.learning_rate) is float
        assert loaded.model.channel_mult == (1, 2)
    assert list(tmp_path.iterdir()) == [tmp_path / "config.json"]


@hypothesis.settings(max_examples=10)
@given(
    st.floats(0, 1e6),
    st.lists(st.integers(1, 8), min_size=1).map(tuple),
    st.text(alphabet=st.characters(codec="utf-8")),
)
def test_every_value_survives(rate, mult, text):
    config = changed(optimizer__learning_rate=rate, model__channel_mult=mult, data__source=text)
    assert load(json.loads(json.dumps(config.to_dict()))) == config


def test_load_takes_defaults_for_what_is_missing():
    stored = base.get_config().to_dict()
    del stored["sample"]["clip"], stored["mesh"], stored["model"]["init"]
    stored["train"]["steps"] = 7
    assert load(stored) == changed(train__steps=7)
    assert load({}) == base.get_config()


def test_load_keeps_the_fields_of_a_network_it_does_not_know():
    stored = {"model": {"name": "transformer", "depth": 12, "widths": [1, 2]}}
    assert load(stored).model.to_dict() == {
        "name": "transformer", "depth": 12, "widths": (1, 2)
    }  # fmt: skip


def test_load_errors(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.json: no such file"):
        load(tmp_path / "nowhere.json")
    (tmp_path / "cut.json").write_text('{"train": {"ste')
    with pytest.raises(ConfigError, match=r"cut\.json is not JSON"):
        load(tmp_path / "cut.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ConfigError, match="holds no config"):
        load(tmp_path / "list.json")
    with pytest.raises(ConfigError) as caught:
        load({"train": {"step": 5}, "gone": 1, "model": {"name": "unet", "dropuot": 0.1}})
    lines = str(caught.value).splitlines()
    assert lines[0] == "config: config.train.step: no such field; did you mean config.train.steps?"
    assert lines[1].startswith("config: config.gone: no such field; there are config.checkpoint,")
    assert lines[2].endswith("did you mean config.model.dropout?")
    with pytest.raises(ConfigError, match="steps"):
        load({"train": {"steps": "many"}})
    with pytest.raises(ConfigError, match=r"config\.train: no such field"):
        load({"train": 5})


def test_no_field_names_the_fields_beside_it():
    message = no_field("mesh.qqqqqqq", flatten(base.get_config()))
    assert message == "no such field; there are config.mesh.data, config.mesh.fsdp, " + (
        "config.mesh.tensor"
    )


def test_freeze():
    frozen = freeze(changed(optimizer__learning_rate=1, data__augmentations=["flip"]))
    assert isinstance(frozen, FrozenConfigDict)
    assert type(frozen.optimizer.learning_rate) is float
    assert frozen.data.augmentations == ("flip",)
    with pytest.raises(AttributeError):
        frozen.train.steps = 5
    assert dict(**frozen.mesh) == {"data": -1, "fsdp": 1, "tensor": 1}


def test_differences():
    old = changed(train__steps=1, ema=ConfigDict({"a": "constant"}))
    new = freeze(changed(train__steps=2, ema=ConfigDict({"b": "constant"})))
    assert differences(old, new) == [
        ("ema.a", "constant", None),
        ("ema.b", None, "constant"),
        ("train.steps", 1, 2),
    ]
    assert differences(old, freeze(old)) == []


@pytest.mark.parametrize(
    "change",
    [
        {"train__steps": 5},
        {"log__every": 5, "checkpoint__keep": 5, "profile": 5},
        {"sample__solver": "ddim", "evaluate__metrics": ("fid",), "convert__shards": 5},
        {"data__workers": 5, "data__prefetch": 5, "mesh__fsdp": 5},
    ],
)
def test_resumable_changes(change):
    check_resumable(base.get_config(), freeze(changed(**change)))


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"train__batch_size": 64}, {"data__source": "shapes"}, {"model__channels": 64}],
)
def test_other_changes_are_refused_with_both_values(change):
    old, new = base.get_config(), changed(**change)
    with pytest.raises(ConfigError) as caught:
        check_resumable(old, new)
    ((field, before, after),) = differences(old, new)
    assert f"config.{field}: {before!r} -> {after!r}" in str(caught.value)
    assert "another --workdir" in str(caught.value)


def test_steps_may_change_where_the_learning_rate_does_not_know_them():
    fields = {"optimizer__decay": "inverse_sqrt", "optimizer__decay_steps": 7}
    check_resumable(changed(train__steps=10, **fields), changed(train__steps=20, **fields))


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_steps_are_fixed_where_the_learning_rate_decays_to_them(decay):
    old = changed(optimizer__decay=decay, train__steps=10)
    check_resumable(old, old)
    with pytest.raises(ConfigError, match=rf"config\.train\.steps: 10 -> 20.*{decay}"):
        check_resumable(old, changed(optimizer__decay=decay, train__steps=20))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"optimizer__learning_rate": 1},
        {"train__steps": 0, "train__accumulate": 4},
        {"ema": ConfigDict(), "sample__ema": "params"},
        {"diffusion__loss": "hybrid", "diffusion__variance": "learned_range"},
        {"ema": POWER, "sample__ema": "posthoc(std=0.15)"},
        {"mesh__data": 1, "mesh__fsdp": -1},
        {"checkpoint__every": 10, "checkpoint__keep_every": 100},
        {
            "model__num_classes": 10,
            "model__null_class": True,
            "sample__guidance": 3.0,
            "sample__labels": "9",
            "diffusion__label_dropout": 0.1,
        },
        {"model": ConfigDict({"name": "transformer", "depth": 12})},
    ],
)
def test_validate_takes_right_configs(fields):
    validate(changed(**fields))
    validate(freeze(changed(**fields)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stpes": 1}, "config.stpes: no such field"),
        ({"train__stpes": 1}, "config.train.stpes: no such field; did you mean config.train.steps"),
        ({"model__depth": 1}, "config.model.depth: no such field"),
        ({"mesh": ConfigDict({"data": 1, "fsdp": 1})}, "config.mesh.tensor is missing"),
        ({"model": ConfigDict({"name": "unet"})}, "config.model.channels is missing"),
        ({"train": 5}, "config.train: no such field"),
        ({"train__steps": "5"}, "config.train.steps = '5': must be a whole number"),
        ({"train__steps": 5.0}, "config.train.steps = 5.0: must be a whole number"),
        ({"train__steps": None}, "config.train.steps = None: must be a whole number"),
        ({"train__steps": True}, "config.train.steps = True: must be a whole number"),
        ({"log__tensorboard": 1}, "config.log.tensorboard = 1: must be True or False"),
        ({"data__augmentations": "flip"}, "config.data.augmentations = 'flip': must be a tuple"),
        ({"data__augmentations": (1,)}, "config.data.augmentations = (1,): must be a tuple of str"),
        ({"seed": -1}, "config.seed = -1: must be from 0 to 2**32 - 1"),
        ({"train__steps": -1}, "config.train.steps = -1: must be 0 or more"),
        ({"data__channels": 2}, "config.data.channels = 2: must be 1 or 3"),
        ({"data__on_bad_image": "drop"}, "must be 'raise' or 'skip'"),
        ({"optimizer__decay": "cos"}, "must be 'constant' or 'cosine' or 'linear' or 'inv"),
        ({"optimizer__learning_rate": float("nan")}, "config.optimizer.learning_rate = nan"),
        ({"sample__guidance": float("inf")}, "config.sample.guidance = inf"),
        ({"sample__clip": "dynamic"}, "config.sample.clip = 'dynamic': must be 'none' or 'static'"),
        ({"convert__shards": -1}, "config.convert.shards = -1: must be 0 or more"),
        ({"convert__split": "a/b"}, "config.convert.split = 'a/b': must be a plain name"),
        ({"convert__fields": "image"}, "config.convert.fields = 'image': must be a tuple"),
        ({"convert__fields": (1,)}, "config.convert.fields = (1,): must be a tuple of str"),
        ({"checkpoint__every": 0}, "config.checkpoint.every = 0: must be 1 or more"),
        ({"mesh__fsdp": 0}, "config.mesh.fsdp = 0: must be -1 (the rest) or 1 or more"),
        ({"train__accumulate": 3}, "multiple of config.train.accumulate = 3"),
        ({"model__null_class": True}, "config.model.null_class = True: needs classes"),
        ({"diffusion__label_dropout": 0.1}, "label_dropout = 0.1: must be 0, or set config.model"),
        ({"sample__guidance": 2.0}, "config.sample.guidance = 2.0: must be 1, or set config.model"),
        ({"diffusion__loss": "vlb"}, "'vlb': needs config.diffusion.variance='learned_range'"),
        ({"diffusion__variance": "learned_range"}, "must be 'hybrid' or 'vlb'"),
        (
            {"ema": ConfigDict({"params": "constant"}), "sample__ema": "params"},
            "config.ema.params: must be a plain name",
        ),
        ({"ema": ConfigDict({"a": 0.9}), "sample__ema": "a"}, "config.ema.a = 0.9: must be a str"),
        ({"sample__ema": "defualt"}, "config.sample.ema = 'defualt': did you mean 'default'?"),
        ({"sample__ema": "posthoc"}, "did you mean 'posthoc(std=...)'?"),
        ({"sample__ema": "posthoc(std=0.1)"}, "config.ema has none; train with two, 'power("),
        ({"sample__ema": "posthoc(std=0.3)", "ema": POWER}, "std must be above 0 and at most"),
        ({"sample__ema": "posthoc(sdt=0.1)", "ema": POWER}, "no argument 'sdt'; did you mean"),
        ({"sample__ema": "posthoc()", "ema": POWER}, "write posthoc(std=...)"),
        ({"mesh__fsdp": -1}, "-1 (the rest) can stand at one axis only"),
        ({"checkpoint__keep_every": 7}, "must be a multiple of config.checkpoint.every = 5000"),
        ({"sample__labels": "3"}, "config.sample.labels = '3': must be 'cycle'"),
        ({"sample__labels": "x", "model__num_classes": 3}, "or a class from '0' to '2'"),
    ],
)
def test_validate_names_field_value_and_what_is_allowed(fields, message):
    with pytest.raises(ConfigError) as caught:
        validate(changed(**fields))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1 or "model" in fields


def test_validate_names_all_mistakes_at_once():
    with pytest.raises(ConfigError) as caught:
        validate(changed(train__steps=-1, log__every=0))
    assert len(str(caught.value).splitlines()) == 2
