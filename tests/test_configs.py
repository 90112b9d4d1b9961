import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import models
from training import command_line, components, sampler, stack, tasks
from training.config import freeze, validate

PARTS = ("__init__", "base", "networks", "stack")
# Each with its variants beside '' and 'smoke'.
STACKS = {
    "configs/unclip_cifar10.py": ("folder", "small"),
    "configs/unclip_paper.py": (),
    "configs/unclip_shapes.py": ("full", "priors", "smoke_priors"),
}
FILES = sorted(
    str(p) for p in Path("configs").glob("*.py") if p.stem not in PARTS and str(p) not in STACKS
)
# Parameters of the papers' networks, as their own code counts them.
COUNTS = {
    "configs/cifar10_ddpm.py": 35.746e6,
    "configs/cifar10_iddpm.py": 52.546e6,
    "configs/cifar10_edm.py": 55.734e6,
    "configs/cifar10_edm.py:ncsnpp": 56.398e6,
    "configs/imagenet64_adm.py": 295.904e6,
    "configs/imagenet64_iddpm.py": 121.064e6,
    "configs/imagenet64_iddpm.py:class_conditional": 273.049e6,
    "configs/imagenet64_edm2.py": 280.2e6,
    "configs/imagenet64_edm2.py:xs": 124.7e6,
    # Without the table of positions, which is no parameter here.
    "configs/imagenet256_dit.py": 674.835e6,
    # Without the learned null arrays Karlo's 1022.03M, which has mean and std of the embedding.
    "configs/prior_paper.py:karlo": 1022.03e6,
}


@pytest.mark.parametrize("variant", ["", ":smoke"])
@pytest.mark.parametrize("file", FILES)
def test_config_is_valid(file, variant):
    config = command_line.read(file + variant)
    validate(config)
    components.check(freeze(config))


@pytest.mark.parametrize(
    ("file", "variant"), [(file, v) for file in STACKS for v in ("", "smoke", *STACKS[file])]
)
def test_stack_is_valid(file, variant):
    config = command_line.read(f"{file}:{variant}")
    stack.validate_stack(config)
    stack.check_stack(freeze(config))


@pytest.mark.parametrize("name", COUNTS)
def test_networks_have_the_papers_size(name):
    config = freeze(command_line.read(name))
    params = jax.eval_shape(tasks.make_task(config).init, jax.random.key(0))
    assert models.count_parameters(params) == pytest.approx(COUNTS[name], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("configs/cifar10_edm.py", 35),
        ("configs/cifar10_edm.py:conditional", 35),
        ("configs/cifar10_edm.py:ncsnpp", 35),
        ("configs/imagenet64_edm2.py", 63),
        ("configs/imagenet64_edm2.py:xs", 63),
    ],
)
def test_samplers_take_the_papers_calls(name, calls):
    """Heun on Karras' levels from 80 to 0.002, then clean data."""
    config = freeze(command_line.read(name))
    task = tasks.make_task(config)
    built = sampler.build_sampler(config, task)
    assert built.calls_per_image == calls
    plan = built.plan({})
    assert plan.now.sigma[[0, -1]] == pytest.approx([80.0, 0.002])
    assert plan.next.sigma[-1] == 0.0


@pytest.mark.parametrize("file", [*FILES, *STACKS])
def test_header_says_how_to_run_it(file):
    text = Path(file).read_text()
    assert f"--config={file}" in text.split('"""')[1]


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_smoke_variant_trains_samples_and_previews(file, tmp_path):
    # Of the other tasks there are no images to sample.
    samples = not re.match("classifier|clip|prior|.*_prior", command_line.read(file).task)
    for arguments in ([f"--config={file}:smoke"], *([["--mode=sample"]] if samples else [])):
        command = [sys.executable, "main.py", f"--workdir={tmp_path}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
    steps = [json.loads(x)["step"] for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [5, 10, 15, 20]
    assert list((tmp_path / "previews").glob("*.png"))
    assert bool(list(tmp_path.glob("samples/*/grid.png"))) == samples


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("file", STACKS)
def test_smoke_variant_of_a_stack_makes_pictures(file, tmp_path):
    caption = "a small red circle on a white background"
    for arguments in ([f"--config={file}:smoke"], ["--mode=generate", f"--prompt={caption}"]):
        command = [sys.executable, "main.py", f"--workdir={tmp_path}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("generated/*/grid.png"))
