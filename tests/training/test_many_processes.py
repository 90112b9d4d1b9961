"""Real processes over loopback: the same training whatever their number."""

import ast
import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.training import many_processes
from training import checkpoint_layout, checkpoints, fingerprint, loop, partition
from training import run as runs
from training.config import freeze, load


def train(workdir, processes, devices, steps, *overrides):
    command = [
        "main.py",
        "--config=configs/digits.py:smoke",
        f"--workdir={workdir}",
        f"--config.train.steps={steps}",
        "--config.train.batch_size=16",
        "--config.model.channel_mult=1,",
        "--config.model.attention_resolutions=()",
        "--config.log.every=1",
        "--config.log.preview_every=0",
        "--config.log.tensorboard=False",
        f"--config.checkpoint.every={steps}",
        "--config.optimizer.warmup_steps=5",
        *overrides,
    ]
    codes = many_processes.run(command, processes, devices, workdir)
    logs = "".join(path.read_text() for path in workdir.parent.glob(f"{workdir.name}-*.log"))
    assert codes == [0] * processes, logs
    return logs


def curve(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines}


def assert_same_curve(a, b, steps):
    first, second = curve(a), curve(b)
    assert list(first) == list(second) == list(range(1, steps + 1))
    np.testing.assert_allclose([*first.values()], [*second.values()], rtol=0, atol=1e-5)


def stored(workdir, step):
    """All arrays of a checkpoint, read onto one device."""
    config = load(workdir / "config.json")
    config.mesh.update(data=1, fsdp=1)
    abstract = runs.build(freeze(config), devices=jax.devices()[:1]).abstract_state
    path, arrays = (workdir / "checkpoints" / str(step)).resolve(), {}
    with ocp.StandardCheckpointer() as reader:
        for item, target in checkpoint_layout.as_items(abstract).items():
            for key, leaf in jax.tree_util.tree_leaves_with_path(
                reader.restore(path / item, target)
            ):
                name = f"{item}/{partition.name(key)}"
                arrays[name] = np.asarray(fingerprint.raw_bits(leaf))
    return arrays


def assert_restored(workdir, out, processes, devices, step):
    """Restored by that many processes, every piece has the bits that are stored."""
    command = ["-m", "tests.training.many_processes", f"--workdir={workdir}", f"--out={out}"]
    codes = many_processes.run(command, processes, devices, out)
    assert codes == [0] * processes, "".join(p.read_text() for p in out.parent.glob("*.log"))
    expected = stored(workdir, step)
    seen = dict.fromkeys(expected, 0)
    for index in range(processes) if processes > 1 else [-1]:
        with np.load(f"{out}-{index}.npz") as pieces:
            for key, piece in pieces.items():
                name, _, place = key.partition(" ")
                whole = expected[name][tuple(slice(*part) for part in ast.literal_eval(place))]
                assert piece.dtype == whole.dtype
                np.testing.assert_array_equal(piece, whole, err_msg=key)
                seen[name] += piece.size
    assert all(seen[name] >= array.size for name, array in expected.items())


def test_two_processes_train_as_one(tmp_path):
    two, here = tmp_path / "two", tmp_path / "here"
    logs = train(two, 2, 1, 6)
    for index in range(2):
        assert f"process {index} of 2 on " in logs
    # What there is one of is told by one.
    assert logs.count("step 6/6") == 1
    # The same on the eight devices of this process.
    config = freeze(load(two / "config.json"))
    loop.train(config, str(here))
    assert_same_curve(two, here, 6)
    # It restores here, with every bit as it was fingerprinted over there.
    store = checkpoints.Checkpoints(two / "checkpoints")
    assert store.restore_newest(runs.build(config).abstract_state)[2] == 6


@pytest.mark.slow
def test_any_processes_and_devices_train_alike(tmp_path):
    whole, halves, quarters = (tmp_path / name for name in ("1x8", "2x4", "4x2"))
    train(whole, 1, 8, 20)
    train(halves, 2, 4, 20)
    # Parameters that lie in pieces on several processes.
    train(quarters, 4, 2, 20, "--config.mesh.fsdp=4", "--config.mesh.data=2")
    assert_same_curve(whole, halves, 20)
    assert_same_curve(whole, quarters, 20)
    assert_restored(quarters, tmp_path / "one", 1, 4, 20)
    assert_restored(quarters, tmp_path / "two", 2, 2, 20)
