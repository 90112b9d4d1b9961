import jax
import numpy as np
import pytest

from benchmarks import few_steps
from configs import digits_fewstep
from training import checkpoints, loop
from training.config import freeze


def test_every_variant_of_the_config_is_a_row():
    variants = {method.variant for method in few_steps.METHODS.values()}
    for variant in variants - {""}:
        config = digits_fewstep.get_config(variant)
        assert config.task.split("(")[0] in few_steps.tasks.TASKS


def test_the_teacher_is_that_of_the_root():
    task = "consistency(teacher='there', start=20, end=160)"
    found = few_steps.taught_by(task, few_steps.Path("here"))
    assert found == "consistency(teacher='here', start=20, end=160)"
    assert (
        few_steps.taught_by("meanflow(equal=0.25)", few_steps.Path("a")) == "meanflow(equal=0.25)"
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    config = digits_fewstep.get_config()
    config.model.update(
        channels=8, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), norm_groups=4
    )
    config.train.update(steps=1, batch_size=8)
    config.log.update(preview_every=0, tensorboard=False)
    config.sample.batch_size = 16
    loop.train(freeze(config), str(root / "teacher"))
    return root


def test_cells_have_the_calls_of_their_column(root):
    methods = [
        few_steps.dataclasses.replace(few_steps.METHODS[name], calls=(calls,))
        for name, calls in (("ddim", 1), ("heun", 4), ("guided", 2))
    ]
    result = few_steps.measure(root, methods, count=20)
    assert [(c["column"], c["calls"]) for c in result["cells"]] == [
        (1, 1),
        (4, 3),
        (2, 2),
    ]
    assert all(c["distance"] > 0 and 0 <= c["accuracy"] <= 1 for c in result["cells"])
    # Real images are nearer than those of a network that was trained for one step.
    assert result["real"]["distance"] < min(c["distance"] for c in result["cells"])
    lines = few_steps.table(result).splitlines()
    assert lines[0] == "| calls | 1 | 2 | 4 | 8 | 50 |"
    assert lines[2].startswith("| teacher, DDIM | ")
    assert lines[2].count("(") == 1


def test_a_part_is_added_to_the_table():
    def result(*cells):
        return {"real": 1, "cells": [{"method": m, "column": c, "v": v} for m, c, v in cells]}

    old = result(("MeanFlow", 1, "a"), ("teacher, DDIM", 2, "b"))
    new = result(("teacher, DDIM", 2, "c"), ("teacher, DDIM", 1, "d"))
    found = few_steps.joined(old, new)
    assert [cell["v"] for cell in found["cells"]] == ["d", "c", "a"]


def test_samples_are_the_jobs(root):
    """The same images as `--mode=sample` makes of this seed."""
    workdir = few_steps.Workdir(root / "teacher")
    sample = dict(few_steps.METHODS["ddim"].sample) | {"steps": 2}
    images, labels, _, step = few_steps.draw(workdir, sample, count=10)
    assert step == checkpoints.steps(workdir.checkpoints)[-1]
    assert images.shape == (10, 8, 8, 1)
    np.testing.assert_array_equal(labels, np.arange(10))
    more, _, _, _ = few_steps.draw(workdir, sample, count=20)
    np.testing.assert_array_equal(more[:10], images)
    assert jax.device_count() == 8
