"""Other networks of guidances, restored from the directories of their runs."""

import jax
import numpy as np
import pytest

from configs import digits, digits_classifier
from training import checkpoints, companions, run
from training.components import ConfigError
from training.config import freeze
from training.mesh import make_mesh
from training.sampler import build_sampler
from training.workdir import Workdir

SMALL = {"channels": 8, "channel_mult": (1,), "norm_groups": 4, "attention_resolutions": ()}


def make_config(module=digits, **sections):
    config = module.get_config("smoke")
    config.model.update(SMALL)
    if module is digits_classifier:
        config.model.head_channels = 4
    config.ema = {"default": "constant(decay=0.5)", "slow": "constant(decay=0.9)"}
    for name, fields in sections.items():
        config[name].update(fields)
    return config


def start(path, config, steps=(3,)):
    """A run whose averages are all `step` at each of `steps`, 'slow' half of it."""
    Workdir(path).start(config, [])
    state = run.build(freeze(config)).init_state()
    store = checkpoints.Checkpoints(path / "checkpoints", keep=9)
    for step in steps:
        fill = {
            name: jax.tree.map(lambda p, v=value: 0 * p + v, state.params)
            for name, value in (("default", step), ("slow", 0.5 * step))
        }
        store.save(step, state.__class__(**vars(state) | {"ema": fill}), {})
    store.close()
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {
        "main": start(root / "main", make_config(), steps=(3, 7)),
        "narrow": start(root / "narrow", make_config(model={"channels": 4, "num_res_blocks": 2})),
        "classifier": start(root / "classifier", make_config(digits_classifier)),
    }


def restored(runs, guidance, **sections):
    config = make_config(**sections)
    config.sample.guidance = (guidance,)
    workdir = Workdir(runs["main"])
    (companion,) = companions.restore(freeze(config), workdir, make_mesh(**config.mesh))
    return companion


def traced_calls(guidance, companion):
    """Calls a step of a sampler with the guidance, which is traced with the real networks."""
    config = make_config()
    config.sample.guidance = (guidance,)
    task = run.tasks.TASKS["diffusion"](freeze(config))
    sampler = build_sampler(config, task, (companion,))
    arguments = jax.random.key(0), np.arange(8, dtype=np.int32), np.arange(8, dtype=np.int32)
    abstract = jax.eval_shape(task.init, jax.random.key(0))
    images = jax.eval_shape(sampler.draw, abstract, sampler.inputs(abstract), *arguments)
    assert images.shape == (8, 8, 8, 1)
    return sampler.calls_per_image / config.sample.steps


def value(companion):
    (value,) = {float(leaf.ravel()[0]) for leaf in jax.tree.leaves(companion.params)}
    return value


def test_another_average_or_checkpoint_of_the_same_run(runs):
    for arguments, wanted in (
        ("ema='slow'", (3.5, 7, "slow")),
        ("checkpoint=3", (3.0, 3, "default")),
        ("ema='slow', checkpoint=3", (1.5, 3, "slow")),
    ):
        weak = restored(runs, f"autoguidance(scale=2.0, {arguments})")
        assert (value(weak), weak.identity["checkpoint"], weak.identity["ema"]) == wanted


def test_a_smaller_network_of_another_run(runs):
    weak = restored(runs, f"autoguidance(scale=2.0, workdir='{runs['narrow']}')")
    assert weak.identity["model"]["channels"] == 4
    assert value(weak) == 3.0
    guidance = f"autoguidance(scale=2.0, workdir='{runs['narrow']}')"
    assert traced_calls(guidance, weak) == 2


def test_a_classifier(runs):
    guidance = f"classifier(scale=2.0, workdir='{runs['classifier']}')"
    classifier = restored(runs, guidance)
    assert traced_calls(guidance, classifier) == 1
    assert classifier.identity["task"] == "classifier"
    assert classifier.task.num_classes == 10


@pytest.mark.parametrize(
    ("guidance", "sections", "message"),
    [
        ("autoguidance(scale=2.0, workdir='{root}/none')", {}, "has no config.json: no run"),
        ("autoguidance(scale=2.0, checkpoint=4)", {}, "no checkpoint of step 4.*there are 3, 7"),
        ("autoguidance(scale=2.0, ema='fast')", {}, "'fast' is not in .*default, params, slow"),
        ("autoguidance(scale=2.0, workdir='{classifier}')", {}, "a run of task 'classifier', need"),
        ("classifier(scale=2.0, workdir='{narrow}')", {}, "of task 'diffusion', needed is class"),
        (
            "classifier(scale=2.0, workdir='{classifier}')",
            {"diffusion": {"schedule": "linear()"}},
            r"schedule = 'cosine\(timesteps=1000\)', and the sampled run 'linear\(\)'; both must",
        ),
        (
            "classifier(scale=2.0, workdir='{classifier}')",
            {"data": {"image_size": 16}},
            "config.data.image_size = 8, and the sampled run 16",
        ),
        (
            "classifier(scale=2.0, workdir='{classifier}')",
            {"model": {"num_classes": 7}},
            "config.model.num_classes = 10, and the sampled run 7",
        ),
        (
            "autoguidance(scale=2.0, workdir='{narrow}')",
            {"diffusion": {"parameterization": "v"}},
            "config.diffusion.parameterization = 'eps', and the sampled run 'v'",
        ),
    ],
)
def test_runs_that_do_not_fit_are_refused(runs, guidance, sections, message):
    name = guidance.format(root=runs["main"].parent, **runs)
    with pytest.raises(ConfigError, match=message) as caught:
        restored(runs, name, **sections)
    assert str(caught.value).startswith(f"config.sample.guidance = {name!r}: ")
