import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusion
from configs import digits_fewstep
from pipelines import sampling
from training import checkpoints, guidance, loop, tasks
from training import run as runs
from training.components import ConfigError
from training.config import freeze, validate

STUDENTS = {
    "progressive": "progressive(teacher={teacher!r}, steps=4, guidance=2.0)",
    "guidance_distillation": "guidance_distillation(teacher={teacher!r})",
    "consistency": "consistency(start=4, end=16, double_every=2)",
    "consistency_distillation": "consistency(teacher={teacher!r}, start=4, end=4, double_every=0)",
    "scm": "scm(warmup=10)",
    "scm_distillation": "scm(teacher={teacher!r}, warmup=0)",
    "meanflow": "meanflow(omega=1.5, kappa=0.2)",
    "shortcut": "shortcut(steps=8, share=0.25)",
}
# One of each kind; the others are left to --slow.
SLOW = [name for name in STUDENTS if name not in ("consistency_distillation", "meanflow")]
DISTILLED = [name for name, task in STUDENTS.items() if "teacher" in task]


def make_config(variant="", teacher="", **task):
    config = digits_fewstep.get_config(variant)
    config.model.update(
        channels=8, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), norm_groups=4
    )
    config.train.update(steps=4, batch_size=8)
    config.checkpoint.every = 2
    config.log.update(every=1, preview_every=0, tensorboard=False)
    config.optimizer.warmup_steps = 1
    config.sample.update(steps=2, count=8, batch_size=8)
    if variant:
        config.task = STUDENTS[variant].format(teacher=teacher)
    return config


def checked(config):
    validate(config)
    return freeze(config)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, one_device):
    workdir = tmp_path_factory.mktemp("teacher")
    loop.train(checked(make_config()), str(workdir))
    return str(workdir)


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in STUDENTS]
)
def test_trains_and_samples(name, teacher, tmp_path):
    config = checked(make_config(name, teacher))
    loop.train(config, str(tmp_path))
    rows = metrics(tmp_path)
    assert len(rows) == 4
    assert all(np.isfinite(row["loss"]) and row["bad_steps"] == 0 for row in rows)
    assert all(row["grad_norm"] > 0 for row in rows)
    sampling.sample(config, tmp_path)
    (out,) = (tmp_path / "samples").iterdir()
    images = np.load(out / "samples.npz")["arr_0"]
    assert images.shape == (8, 8, 8, 1)
    assert images.std() > 5
    calls = json.loads((out / "info.json").read_text())["network_calls_per_image"]
    # Heun's two steps are three calls; guidance that is distilled costs none.
    assert calls == (3 if name == "guidance_distillation" else 2)


def teacher_params(teacher):
    config = make_config()
    task = tasks.make_task(checked(config))
    abstract = jax.eval_shape(task.init, jax.random.key(0))
    return checkpoints.restore_params(f"{teacher}/checkpoints", "default", abstract)[0]


@pytest.mark.parametrize("name", DISTILLED)
def test_the_student_starts_as_its_teacher_which_is_not_trained(name, teacher):
    run = runs.build(checked(make_config(name, teacher)))
    state = run.init_state()
    expected = teacher_params(teacher)
    jax.tree.map(np.testing.assert_array_equal, state.frozen["teacher"], expected)
    started = {k: v for k, v in state.params.items() if k in expected}
    jax.tree.map(np.testing.assert_array_equal, started, expected)
    jax.tree.map(np.testing.assert_array_equal, state.ema["default"], state.params)
    new = {"guidance_distillation": {"scalars"}, "scm_distillation": {"objective"}}
    assert state.params.keys() - expected.keys() == new.get(name, set())
    # The optimizer has two moments for each of the student's numbers and for no other.
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert moments == 2 * count


def test_the_teacher_is_an_argument_that_the_step_leaves_alone(teacher):
    run = runs.build(checked(make_config("consistency_distillation", teacher)))
    state, other = run.init_state(), run.init_state()
    before = jax.device_get(state.frozen)
    other.frozen["teacher"]["conv_out"]["bias"] += 1.0
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 8, 8, 1), np.uint8),
        "label": np.arange(8, dtype=np.int32),
    }
    program = run.train_step.lower(run.abstract_state, run.batch_spec).compile()
    batch = jax.device_put(batch, run.batch_sharding())
    after, changed = program(state, batch), program(other, batch)
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(after.frozen))
    assert float(after.metrics["loss"]) != float(changed.metrics["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["consistency_distillation", "shortcut"])
def test_a_stopped_run_goes_on_to_the_bit_and_stores_no_teacher(name, teacher, tmp_path):
    config = make_config(name, teacher)
    # The course of the learning rate must not depend on where it stops.
    config.optimizer.decay = "constant"
    loop.train(checked(config), str(tmp_path / "unbroken"))
    for steps in (2, 4):
        config.train.steps = steps
        loop.train(checked(config), str(tmp_path / "broken"))
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "unbroken")
    stored = tmp_path / "broken" / "checkpoints" / "4" / "training" / "_METADATA"
    assert "teacher" not in stored.read_text()
    assert "frozen" not in stored.read_text()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"diffusion": {"schedule": "cosine()"}}, "diffusion.schedule is 'rectified_flow"),
        ({"data": {"image_size": 16}}, "config.data.image_size is 8 there and 16 here"),
        ({"model": {"num_classes": 0, "null_class": False}}, "num_classes is 10 there and 0 here"),
        ({"model": {"channels": 16}}, r"network is another: .* has shape .* there and .* here"),
        ({"model": {"num_res_blocks": 2}}, r"network is another: (it has no|.* has shape)"),
    ],
)
def test_a_teacher_of_another_kind_is_refused_before_anything_is_compiled(fields, message, teacher):
    config = make_config("progressive", teacher)
    config.task = f"progressive(teacher={teacher!r}, steps=4)"
    for section, values in fields.items():
        config[section].update(values)
    with pytest.raises(ConfigError, match=r"config\.task.*" + message):
        runs.build(checked(config))


def test_a_missing_teacher_is_named(teacher, tmp_path):
    config = make_config("progressive", str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"config.task: teacher='.*nothing'.* no run was started"):
        runs.build(checked(config))
    # The student itself needs none to be sampled.
    assert tasks.make_task(checked(config)).steps == 4


def test_a_chain_halves(teacher, tmp_path):
    config = make_config("progressive", teacher)
    config.train.steps = 1
    loop.train(checked(config), str(tmp_path))
    config.task = f"progressive(teacher={str(tmp_path)!r}, steps=2)"
    runs.build(checked(config))
    config.task = f"progressive(teacher={str(tmp_path)!r}, steps=1)"
    with pytest.raises(ConfigError, match=r"steps=1 must be half of .* trained to take 4"):
        runs.build(checked(config))


@pytest.mark.parametrize(
    ("task", "fields", "message"),
    [
        ("meanflow()", {"diffusion": {"schedule": "cosine()"}}, "straight paths .* not 'cosine"),
        ("meanflow()", {"diffusion": {"schedule": "rectified_flow(shift=3.0)"}}, "without a shift"),
        ("meanflow(equal=2.0)", {}, "equal in"),
        ("meanflow()", {"model": {"attention": "cudnn", "dtype": "bfloat16"}}, "take 'xla'"),
        ("scm()", {"model": {"attention": "cudnn", "dtype": "bfloat16"}}, "take 'xla'"),
        ("shortcut(steps=100)", {}, "steps=100 must be a power of two"),
        ("shortcut(average='slow')", {}, "average='slow' is not in config.ema: default"),
        ("consistency(start=9, end=3)", {}, "start=9, end=3"),
        ("consistency(sigma_min=60.0, sigma_max=50.0)", {}, "need sigma_min below sigma_max"),
        ("consistency(guidance=2.0)", {}, "guidance needs a teacher"),
        ("scm()", {"diffusion": {"parameterization": "v"}}, "needs .*edm.* not 'v'"),
        ("progressive(steps=4)", {}, r"write progressive\(teacher=\.\.\.\)"),
        ("consistency()", {"diffusion": {"uncertainty_channels": 8}}, "must be 0, not 8"),
        ("consistency()", {"diffusion": {"loss": "vdm"}}, "config.diffusion"),
    ],
)
def test_mistakes_name_what_is_allowed(task, fields, message):
    config = make_config()
    config.task = task
    for section, values in fields.items():
        config[section].update(values)
    with pytest.raises(ConfigError, match=message):
        tasks.make_task(checked(config))


@pytest.mark.parametrize(
    ("variant", "sample", "message"),
    [
        ("meanflow", {"solver": "ddim()"}, r"is told each step's length: take flow_map\(\)"),
        ("meanflow", {"clip": "static"}, "config.sample.clip must be 'none', not 'static'"),
        ("meanflow", {"guidance": ("classifier_free(scale=2.0)",)}, r"sample.guidance \(\), not"),
        ("consistency", {"solver": "flow_map()", "clip": "none"}, "is no flow map"),
    ],
)
def test_samplers_that_do_not_fit_are_refused(variant, sample, message):
    config = make_config(variant)
    config.sample.update(sample)
    config = checked(config)
    with pytest.raises(ConfigError, match=message):
        sampling.build_sampler(config, tasks.make_task(config))


def probe(task, seen):
    """The task with a network that notes what it is told and answers with zeros."""

    def apply(params, x, time, condition, dropout_key=None):
        seen.append((x, time, condition))
        return 0.0 * x + params["w"] * 0.0

    return task.network._replace(apply=apply)


def test_shortcut_tells_the_number_of_doublings():
    task = tasks.make_task(checked(make_config("shortcut")))
    seen = []
    steps = 0.99 * jnp.array([1.0, 0.5, 0.125, 0.0])
    inner = probe(task, seen)
    from training.tasks.shortcut import _told_doublings

    apply = _told_doublings(inner, task)
    apply({"w": 0.0}, jnp.zeros((4, 8, 8, 1)), jnp.zeros(4), {"step": steps})
    np.testing.assert_allclose(seen[0][2]["step"], [0.0, 1.0, 3.0, 3.0], atol=1e-6)


def test_guidance_of_a_distilled_model_is_a_number_it_is_told():
    config = make_config("guidance_distillation", "nowhere")
    config.sample.guidance = ("classifier_free(scale=3.0)",)
    config = checked(config)
    task = tasks.make_task(config)
    seen = []
    task.network = probe(task, seen)
    sampler = sampling.build_sampler(config, task)
    sampler({"w": jnp.float32(0)}, jax.random.key(0), np.arange(2), np.arange(2))
    assert seen[0][0].shape[0] == 2
    assert seen[0][2]["guidance"].shape == (2,)
    assert sampler.calls_per_image == 3
    assert guidance.told_scale(sampler.guidances) == 3.0
    config = make_config("guidance_distillation", "nowhere")
    config.sample.guidance = ("classifier_free(scale=3.0, rescale=0.7)",)
    with pytest.raises(ConfigError, match="guides itself"):
        sampling.build_sampler(checked(config), task)


def test_the_guided_teacher_is_classifier_free_guidance(teacher):
    config = checked(make_config("progressive", teacher))
    task = tasks.make_task(config)
    params = teacher_params(teacher)
    # A fresh network says zero: its last layer is moved.
    params = jax.tree.map(lambda leaf: leaf + 0.05, params)
    x = jnp.linspace(-1, 1, 128).reshape(2, 8, 8, 1)
    level = task.schedule.level(jnp.array([0.3, 0.8]))
    label = jnp.array([1, 7])
    found = jax.jit(task.teacher({"teacher": params}))(x, level, {"label": label})

    @jax.jit
    def plain(label):
        denoise = diffusion.denoiser(
            lambda *a: task.network.apply(params, *a), task.schedule, task.parameterization
        )
        return denoise(x, level, {"label": label}).x0

    free = plain(jnp.array([10, 10]))
    expected = free + 2.0 * (plain(label) - free)
    np.testing.assert_allclose(found.x0, expected, rtol=1e-4, atol=1e-5)
