"""A run that is killed and started again ends as one that was not, to the bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from training import checkpoints

STEPS = 24
# Compiles sooner and runs no slower. With no optimizations at all, as in the process of the tests,
# the whole run takes more than twice as long.
QUICK_COMPILATION = (
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    " --xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
)


def start(workdir, devices, *overrides):
    """`python main.py` on a tiny run, in a process group of its own."""
    command = [
        sys.executable,
        "main.py",
        "--config=configs/digits.py:smoke",
        f"--workdir={workdir}",
        f"--config.train.steps={STEPS}",
        "--config.train.batch_size=16",
        "--config.train.accumulate=2",
        "--config.model.channel_mult=1",
        "--config.model.attention_resolutions=()",
        "--config.model.middle_attention=False",
        "--config.log.every=2",
        "--config.log.preview_every=0",
        "--config.log.tensorboard=False",
        "--config.checkpoint.every=8",
        "--config.optimizer.warmup_steps=5",
        *overrides,
    ]
    flags = f"{QUICK_COMPILATION} --xla_force_host_platform_device_count={devices}"
    log = open(f"{workdir}.log", "a")  # noqa: SIM115  (closed with the process)
    return subprocess.Popen(
        command,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def finish(process, workdir):
    assert process.wait(timeout=240) == 0, Path(f"{workdir}.log").read_text()


def kill_after(process, workdir, step):
    """SIGKILL as soon as the metrics of `step` are written."""
    metrics = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (metrics.exists() and f'{{"step": {step},' in metrics.read_text()):
        assert process.poll() is None, Path(f"{workdir}.log").read_text()
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def final_arrays(workdir):
    path = (workdir / "checkpoints" / str(STEPS)).resolve()
    arrays = {}
    with ocp.StandardCheckpointer() as reader:
        for item in ("params", "ema.default", "training"):
            for key, leaf in jax.tree_util.tree_leaves_with_path(reader.restore(path / item)):
                if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                    leaf = jax.random.key_data(leaf)
                arrays[item + jax.tree_util.keystr(key)] = np.asarray(leaf)
    return arrays


@pytest.mark.parametrize(
    ("devices", "mesh"),
    [pytest.param(1, (), marks=pytest.mark.slow), (4, ("--config.mesh.fsdp=2",))],
)
def test_killed_and_resumed_equals_unbroken(tmp_path, devices, mesh):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    finish(start(unbroken, devices, *mesh), unbroken)
    # Before the first checkpoint, and between the second and the last.
    for step in (4, 20):
        kill_after(start(broken, devices, *mesh), broken, step)
        assert checkpoints.steps(broken / "checkpoints")[-1:] != [STEPS]
    finish(start(broken, devices, *mesh), broken)

    assert (broken / "metrics.jsonl").read_bytes() == (unbroken / "metrics.jsonl").read_bytes()
    expected, found = final_arrays(unbroken), final_arrays(broken)
    assert expected.keys() == found.keys()
    assert any("opt_state" in key for key in expected)
    for key in expected:
        np.testing.assert_array_equal(found[key], expected[key], err_msg=key)
