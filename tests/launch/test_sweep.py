import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import sweep
from launch.__main__ import main
from launch.job import Job
from training.components import ConfigError

JOB = Job("/runs/a", "configs/digits.py", overrides=("--config.train.steps=5",))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("0,1, 2", ["0", "1", "2"]),
        ("1e-4", ["1e-4"]),
        ("ddim(eta=0.0),ddpm()", ["ddim(eta=0.0)", "ddpm()"]),
        ("a(x=(1,2),y='),'),b", ["a(x=(1,2),y='),')", "b"]),
        ("(1,2),()", ["(1,2)", "()"]),
        ("{'a': [1,2]},{}", ["{'a': [1,2]}", "{}"]),
    ],
)
def test_commas_inside_of_a_value_do_not_part_it(text, parts):
    assert sweep.split(text) == parts


@pytest.mark.parametrize("text", ["a(x=1", "a)x,b", "'a,b", "a(x=1],b"])
def test_brackets_that_do_not_close_are_told(text):
    with pytest.raises(ConfigError, match=r"missing|closes nothing"):
        sweep.split(text)


def test_the_product_of_all_lists():
    jobs = sweep.expand(JOB, ["config.seed=0,1", "config.optimizer.learning_rate=1e-4,2e-4"])
    assert [job.name for job in jobs] == [
        "seed=0,learning_rate=1e-4",
        "seed=0,learning_rate=2e-4",
        "seed=1,learning_rate=1e-4",
        "seed=1,learning_rate=2e-4",
    ]
    assert jobs[3].workdir == "/runs/a/seed=1,learning_rate=2e-4"
    assert jobs[3].root == "/runs/a"
    assert jobs[3].overrides == (
        "--config.train.steps=5",
        "--config.seed=1",
        "--config.optimizer.learning_rate=2e-4",
    )


def test_no_sweep_is_the_job_itself():
    assert sweep.expand(JOB, []) == [JOB]


def test_names_tell_fields_apart_that_end_alike():
    (job, *_) = sweep.expand(
        JOB, ["config.sample.seed=1,2", "config.seed=3", "config.mesh.data=-1"]
    )
    assert job.name == "sample.seed=1,seed=3,data=-1"


VALUES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="'\"()[]{},"), min_size=1).filter(
        lambda text: text == text.strip()
    ),
    min_size=1,
    max_size=5,
    unique=True,
)


@given(VALUES, VALUES)
def test_names_are_safe_and_unique(first, second):
    axes = ["config.sample.solver=" + ",".join(first), "config.model.name=" + ",".join(second)]
    jobs = sweep.expand(JOB, axes)
    names = [job.name.casefold() for job in jobs]
    assert len(set(names)) == len(first) * len(second)
    for name in names:
        assert len(name) <= sweep.LONGEST_NAME
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.+-=,")
        assert not name.startswith(".")


@pytest.mark.parametrize(
    ("sweeps", "said"),
    [
        (["seed=0,1"], "write --sweep config.field=value"),
        (["config.seed=0,,1"], "a value is empty"),
        (["config.seed=0,1,0"], "0 is there twice"),
        (["config.seed=0", "config.seed=1"], "swept twice"),
    ],
)
def test_mistakes_are_told(sweeps, said):
    with pytest.raises(ConfigError, match=said):
        sweep.expand(JOB, sweeps)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("config.seed=0,one", "--config.seed=one: must be a whole number"),
        ("config.sede=0,1", "did you mean config.seed?"),
        ("config.train.steps=5,-1", "config.train.steps = -1: must be 0 or more"),
        ("config.optimizer.learning_rate=1e-4,0.0001", "are the same config"),
    ],
)
def test_values_are_checked_as_overrides_are(values, said, capsys):
    given = ["local", "--config=configs/digits.py", "--workdir=/runs/a", "--dry-run"]
    try:
        status = main([*given, "--sweep", values])
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert said in capsys.readouterr().err
