import contextlib
import dataclasses
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits, digits_fewstep
from training import init_from, loop, mesh, partition
from training import run as runs
from training.checkpoints import Checkpoints
from training.components import ConfigError
from training.config import check_resumable, freeze, load, validate
from training.init_plan import make_plan
from training.state import TrainState, by_path
from training.workdir import Workdir

FSDP = {"data": 1, "fsdp": -1}
# Parameters of the label's embedding, which a network without classes has not.
LABEL = "label/.*"


def make_config(init=None, **model):
    """Without classes, images of three channels, averages for a reconstruction."""
    config = digits.get_config("smoke")
    config.data.channels = 3
    config.model.update(
        channels=8,
        channel_mult=(1,),
        num_res_blocks=1,
        attention_resolutions=(),
        middle_attention=False,
        norm_groups=4,
    )
    config.model.update({"num_classes": 0, "null_class": False} | model)
    config.diffusion.label_dropout = 0.0
    config.optimizer.decay = "constant"
    config.sample.update(guidance=(), ema="long", steps=1, count=4, batch_size=4)
    config.ema = {"short": "power(std=0.05)", "long": "power(std=0.1)"}
    config.train.update(steps=2, batch_size=8)
    config.checkpoint.every = 2
    config.log.update(every=1, preview_every=0, tensorboard=False)
    config.init.update(init or {})
    return config


def checked(config):
    validate(config)
    return freeze(config)


def with_classes(workdir, fresh=(LABEL,), **init):
    return make_config({"workdir": str(workdir), "fresh": fresh, **init}, num_classes=10)


def drawn(params, seed):
    """Random numbers in place of parameters, the zeros that they begin with included."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: rng.normal(0, 0.1, p.shape).astype(np.float32), params)


def store(config, directory, steps=(4, 8)):
    """A work directory as a training leaves it, with random parameters; {name: parameters}."""
    workdir = Workdir(directory)
    workdir.start(checked(config), ["test"])
    run = runs.build(checked(config))
    shapes = run.abstract_state
    put = lambda tree, like: jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), tree, like)  # noqa: E731
    keeper = Checkpoints(workdir.checkpoints, keep=len(steps))
    for step in steps:
        params = put(drawn(shapes.params, step), shapes.params)
        averages = {
            name: put(drawn(shapes.params, step + 1 + i), shapes.params)
            for i, name in enumerate(sorted(config.ema))
        }
        rest = {field.name: jnp.zeros(()) for field in dataclasses.fields(TrainState)}
        rest |= {"params": params, "ema": averages, "opt_state": (), "metrics": {}}
        rest |= {"task": {}, "frozen": {}}
        keeper.save(step, TrainState(**rest), {})
    keeper.close()
    return {"params": params} | averages


@pytest.fixture(scope="module", autouse=True)
def everything_is_split():
    """Small parameters, too, are split over the devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partition, "MIN_SHARDED_SIZE", 64)
        yield


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The directory of a run without classes, saved on eight devices, and its parameters."""
    directory = tmp_path_factory.mktemp("other")
    config = make_config()
    config.mesh.update(FSDP)
    return directory, store(config, directory)


@pytest.fixture(scope="module")
def started(other):
    """A run with classes that starts from it, on eight devices."""
    config = with_classes(other[0])
    config.mesh.update(FSDP)
    run = runs.build(checked(config))
    return run, run.init_state()


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def rest(params):
    """Without the label's embedding."""
    return {path: v for path, v in by_path(params).items() if not path.startswith("label/")}


def test_a_network_with_classes_starts_from_one_without(other, started):
    theirs = other[1]
    run, state = started
    same(rest(state.params), by_path(theirs["long"]))
    # What is fresh is what this run begins with without the other one.
    plain = checked(make_config(num_classes=10))
    alone = runs.build(plain, jax.devices()[:1]).init_state().params
    assert state.params.keys() - theirs["long"].keys() == {"label"}
    same(state.params["label"], alone["label"])
    assert not np.array_equal(alone["conv_in"]["kernel"], state.params["conv_in"]["kernel"])
    for average in ("short", "long"):
        same(state.ema[average], state.params)
    # Every leaf lies as the mesh says, a large one nowhere whole.
    places = jax.tree.map(lambda leaf: leaf.sharding, run.abstract_state)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == places
    kernel = state.params["conv_in"]["kernel"]
    assert all(piece.data.size == kernel.size // 8 for piece in kernel.addressable_shards)


def test_one_device_begins_with_the_bits_of_eight(other, started):
    run = runs.build(checked(with_classes(other[0])), jax.devices()[:1])
    alone = run.init_state()
    same(alone.params, started[1].params)
    same(alone.ema, started[1].ema)
    assert alone.params["conv_in"]["kernel"].sharding.num_devices == 1


def test_schedule_free_begins_at_the_loaded_parameters(other):
    config = make_config({"workdir": str(other[0]), "ema": "params", "checkpoint": 8})
    config.optimizer.update(name="schedule_free_adamw", decay="constant")
    state = runs.build(checked(config), jax.devices()[:1]).init_state()
    same(state.params, other[1]["params"])
    copies = [
        leaf
        for leaf in jax.tree.leaves(state.opt_state)
        if leaf.shape == (3, 3, 3, 8) and np.any(leaf)
    ]
    assert len(copies) == 1
    same(copies[0], other[1]["params"]["conv_in"]["kernel"])


def test_what_comes_from_where_is_told(other, caplog):
    start = init_from.Start(checked(with_classes(other[0])).init, shapes(num_classes=10))
    with caplog.at_level(logging.INFO):
        start.load(mesh.make_mesh(devices=jax.devices()[:1]))
    count = len(by_path(other[1]["params"]))
    assert (
        f"step 8, 'long': {count} taken; 0 padded with zeros; 1 fresh (label/embedding)"
        in caplog.text
    )
    assert "0 there are not used" in caplog.text


def shapes(**model):
    return runs.build(checked(make_config(**model))).abstract_state.params


def test_a_reconstruction_is_a_start_too(other):
    init = make_config({"workdir": str(other[0]), "ema": "posthoc(std=0.1)"}).init
    start = init_from.Start(init, shapes())
    loaded = start.load(mesh.make_mesh(devices=jax.devices()[:1]))
    # One of the two widths that are stored at the step.
    expected = by_path(other[1]["long"])
    assert loaded.keys() == expected.keys()
    for path, value in loaded.items():
        np.testing.assert_allclose(value, expected[path], atol=1e-5)


def test_a_padded_input_sees_nothing_of_what_was_added(other):
    config = make_config({"workdir": str(other[0]), "pad": ("conv_in/kernel",)})
    config.task = "super_resolution(low=4, degradation='none', noise=(0.0, 0.0))"
    run = runs.build(checked(config), jax.devices()[:1])
    params = run.init_state().params
    kernel, theirs = params["conv_in"]["kernel"], other[1]["long"]
    assert kernel.shape == (3, 3, 6, 8)
    same(kernel[:, :, :3], theirs["conv_in"]["kernel"])
    assert not np.any(kernel[:, :, 3:])
    x, time = jax.random.normal(jax.random.key(0), (2, 8, 8, 3)), jnp.array([3.0, 500.0])
    plain = runs.build(checked(make_config()), jax.devices()[:1]).task.network
    expected = jax.jit(plain.apply)(jax.device_get(theirs), x, time, None)
    assert expected.std() > 0.01
    wide = jax.jit(run.task.network.apply)
    for low in (jnp.zeros_like(x), jax.random.normal(jax.random.key(1), x.shape)):
        same(wide(params, x, time, {"low": low}), expected)


def test_a_resumed_run_does_not_look_at_the_other_again(other, tmp_path, caplog):
    directory = shutil.copytree(other[0], tmp_path / "other")
    config = make_config({"workdir": str(directory)})
    # Begun, and over at once: nothing has to be compiled for a step.
    config.train.steps = 0
    ours = Workdir(tmp_path / "ours")
    with caplog.at_level(logging.INFO):
        loop.train(checked(config), str(ours.path))
    assert f"parameters of {directory}, step 8" in caplog.text
    assert load(ours.config).init.workdir == str(directory)
    run = runs.build(checked(config))
    with contextlib.closing(
        loop.make_loader(config, loop.make_source(config), ["image"])
    ) as loader:
        position = loader.state()
    with contextlib.closing(Checkpoints(ours.checkpoints)) as keeper:
        keeper.save(2, run.init_state(), position)
    shutil.rmtree(directory)
    caplog.clear()
    config.train.steps = 2
    with caplog.at_level(logging.INFO):
        loop.train(checked(config), str(ours.path))
    assert "resuming from the checkpoint of step 2" in caplog.text
    assert "parameters of" not in caplog.text
    shutil.rmtree(ours.checkpoints)
    with pytest.raises(ConfigError, match=r"config\.init\.workdir = .*no run was started there"):
        loop.train(checked(config), str(ours.path))


def test_nothing_is_written_where_the_other_run_does_not_fit(other, tmp_path):
    config = with_classes(other[0], fresh=())
    with pytest.raises(ConfigError, match="no label/embedding there"):
        loop.train(checked(config), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_start_cannot_change_on_resume():
    before, after = make_config({"workdir": "a"}), make_config({"workdir": "a", "checkpoint": 8})
    check_resumable(before, before)
    with pytest.raises(ConfigError, match=r"config\.init\.checkpoint: -1 -> 8"):
        check_resumable(before, after)


OURS = {"in/kernel": (3, 6), "label/table": (10, 8), "mid/0/bias": (8,), "mid/1/bias": (8,)}
THEIRS = {"in/kernel": (3, 3), "body/0/bias": (8,), "body/9/bias": (8,), "head/bias": (3,)}


def plan(rules=(), fresh=(), pad=()):
    init = make_config({"workdir": "there", "rules": rules, "fresh": fresh, "pad": pad}).init
    return make_plan(init, OURS, THEIRS)


def test_rules_decide_in_their_order():
    made = plan(
        (r"mid/1/(.*) -> body/9/\1", r"mid/(\d+)/(?P<rest>.*) -> body/\1/\g<rest>"),
        ("label/.*",),
        (".*/kernel",),
    )
    assert made.sources == {
        "in/kernel": "in/kernel",
        "mid/0/bias": "body/0/bias",
        "mid/1/bias": "body/9/bias",
    }
    assert (made.padded, made.fresh) == (("in/kernel",), ("label/table",))
    assert made.unused == ("head/bias",)


def test_two_may_come_from_one():
    made = plan((r"mid/\d+/bias->body/0/bias",), ("label/table",), ("in/kernel",))
    assert made.sources["mid/0/bias"] == made.sources["mid/1/bias"] == "body/0/bias"
    assert made.unused == ("body/9/bias", "head/bias")


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        plan((r"mid/1/.* -> body/\2", "mids/(.*) -> body/0"), ("lable/table",), ("in/kernels",))
    lines = str(caught.value).splitlines()
    assert lines[0] == "config.init.workdir = 'there': its parameters do not fit:"
    expected = (
        "config.init.fresh: 'lable/table' matches no parameter of this run; did you mean "
        "'label/table'?",
        "config.init.pad: 'in/kernels' matches no parameter of this run; did you mean 'in/kernel'?",
        r"config.init.rules: 'mid/1/.* -> body/\\2': invalid group reference 2",
        "config.init.rules: 'mids/(.*) -> body/0' decides no parameter of this run",
        "in/kernel (3, 6): in/kernel there has (3, 3); ours is larger: config.init.pad",
        "label/table (10, 8): no label/table there",
        "mid/0/bias (8,): no mid/0/bias there; nearest: body/0/bias (8,), body/9/bias (8,)",
    )
    assert len(lines) == len(expected) + 2
    for line, start in zip(lines[1:-1], expected, strict=True):
        assert line.strip().startswith(start)
    for field in ("rules", "pad", "fresh"):
        assert f"config.init.{field}" in lines[-1]


@pytest.mark.parametrize("shape", [(3, 2), (3, 6, 1)])
def test_a_smaller_parameter_or_one_of_other_rank_cannot_be_padded(shape):
    init = make_config({"workdir": "there", "pad": ("in/kernel",)}).init
    with pytest.raises(ConfigError, match=r"as large along each axis; leave it to config\.init\.f"):
        make_plan(init, {"in/kernel": shape}, THEIRS)


@pytest.mark.parametrize(
    ("init", "message"),
    [
        (
            {"fresh": (LABEL,)},
            r"config\.init\.fresh = .*must be \(\) without config\.init\.workdir",
        ),
        ({"workdir": "a", "checkpoint": -2}, r"config\.init\.checkpoint = -2"),
        ({"workdir": "a", "rules": ("a b",)}, "'a b': must be 'ours -> theirs'"),
        ({"workdir": "a", "rules": ("a -> ",)}, "'a -> ': must be 'ours -> theirs'"),
        ({"workdir": "a", "rules": ("(a -> b",)}, r"init\.rules: '\(a' is no regular expression"),
        ({"workdir": "a", "pad": ("[",)}, r"init\.pad: '\[' is no regular expression"),
        ({"workdir": "a", "fresh": (1,)}, r"init\.fresh = \(1,\): must be a tuple of strings"),
        ({"workdir": "a", "ema": "posthoc(std=2.0)"}, r"init\.ema = .*std must be above 0"),
    ],
)
def test_mistakes_of_the_config_are_found_before_anything_is_read(init, message):
    with pytest.raises(ConfigError, match=message):
        validate(make_config(init))


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ({"checkpoint": 5}, r"config\.init\.checkpoint = 5: there are 4, 8"),
        ({"ema": "lnog"}, r"config\.init\.ema = 'lnog': did you mean 'long'\?"),
        (
            {"ema": "posthoc(std=0.1)", "checkpoint": 4},
            "needs checkpoints of several steps up to 4",
        ),
    ],
)
def test_what_the_other_run_lacks(other, init, message):
    config = make_config({"workdir": str(other[0]), **init})
    with pytest.raises(ConfigError, match=message):
        init_from.Start(checked(config).init, shapes()).check()


def test_a_run_without_checkpoint(tmp_path):
    init = make_config({"workdir": str(tmp_path)}).init
    with pytest.raises(ConfigError, match=r"config\.init\.workdir = .*no run was started there"):
        init_from.Start(init, shapes()).check()
    Workdir(tmp_path).start(checked(make_config()), ["test"])
    with pytest.raises(ConfigError, match="no complete checkpoint"):
        init_from.Start(init, shapes()).check()


def test_published_weights_become_a_work_directory(tmp_path):
    config = checked(make_config())
    params = drawn(shapes(), 0)
    init_from.store(tmp_path / "published", config, params)
    init = make_config({"workdir": str(tmp_path / "published")}).init
    start = init_from.Start(init, shapes())
    same(start.load(mesh.make_mesh(**FSDP)), by_path(params))
    with pytest.raises(ConfigError, match="holds a run; give a new directory"):
        init_from.store(tmp_path / "published", config, params)
    del params["conv_in"]["bias"]
    with pytest.raises(ConfigError, match=r"conv_in/bias \(8,\) is missing"):
        init_from.store(tmp_path / "new", config, params)
    params["conv_in"]["bias"] = np.zeros((9,), np.float32)
    with pytest.raises(ConfigError, match="parameters are not those of the config: conv_in/bias"):
        init_from.store(tmp_path / "new", config, params)
    assert not (tmp_path / "new").exists()


def test_a_student_starts_from_its_teacher_alone():
    config = digits_fewstep.get_config("consistency")
    config.task = "consistency(teacher='nowhere')"
    config.init.workdir = "elsewhere"
    with pytest.raises(ConfigError, match=r"config\.init\.workdir = 'elsewhere': .*its teacher"):
        runs.build(checked(config))
