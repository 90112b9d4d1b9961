import functools
import json
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import peer, train_step
from configs import base
from training.mesh import batch_sharding, make_mesh, replicated

STANDIN = Path(__file__).with_name("standin.py")


@pytest.fixture(autouse=True)
def allocator_as_it_was(monkeypatch):
    """What it sets would stay for all tests of this process."""
    monkeypatch.setattr(train_step.allocator, "keep_freed_memory", lambda: None)


@pytest.fixture
def fake(monkeypatch):
    """A run whose step is two products, and a third where blocks are recomputed."""

    def build(config):
        mesh = make_mesh()
        rounds = 3 if config.model.remat else 2

        def step(state, batch):
            x = batch["image"].reshape(16, 16).astype(jnp.float32)
            for _ in range(rounds):
                x = x @ state.params["w"]
            return State({"w": x})

        return types.SimpleNamespace(
            mesh=mesh,
            abstract_state=State({"w": jax.ShapeDtypeStruct((16, 16), jnp.float32)}),
            init_state=lambda: jax.device_put(State({"w": jnp.eye(16)}), replicated(mesh)),
            batch_spec={
                "image": jax.ShapeDtypeStruct(
                    (16, 4, 4, 1), jnp.uint8, sharding=batch_sharding(mesh)
                ),
                "label": jax.ShapeDtypeStruct((16,), jnp.int32, sharding=batch_sharding(mesh)),
            },
            train_step=jax.jit(step, out_shardings=replicated(mesh)),
        )

    monkeypatch.setattr(train_step.run, "build", build)


@jax.tree_util.register_pytree_node_class
class State:
    def __init__(self, params):
        self.params = params

    def tree_flatten(self):
        return (self.params,), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def test_measure(fake):
    config = base.get_config()
    config.train.batch_size, config.model.remat, config.log.peak_flops = 16, True, 1e9
    result = train_step.measure(config, steps=5)
    assert result["parameters"] == 256
    assert result["flops_per_step"] == 2 * 2 * 16**3
    assert 0 < result["step_seconds_p10"] <= result["step_seconds_median"]
    assert result["step_seconds_median"] <= result["step_seconds_p90"]
    assert result["images_per_second"] == 16 / result["step_seconds_median"]
    assert result["mfu"] == pytest.approx(result["flops_per_second"] / (8 * 1e9))
    assert result["host_peak_rss_bytes"] > 0


def test_command_line_to_table_and_json(fake, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_step.command.components, "check", lambda config: None)
    path = tmp_path / "out.json"
    train_step.main(
        [
            "--config=configs/digits.py",
            "--config.train.batch_size=16",
            "--steps=2",
            f"--json={path}",
        ]
    )
    printed = capsys.readouterr().out
    assert "configs/digits.py --config.train.batch_size=16" in printed
    assert "unknown peak" in printed
    result = json.loads(path.read_text())
    assert (result["batch_size"], result["steps"], result["mfu"]) == (16, 2, None)


def test_ratio_to_a_peer(fake, monkeypatch):
    monkeypatch.setattr(
        train_step.peer, "against", functools.partial(peer.against, program=STANDIN)
    )
    config = base.get_config()
    config.train.batch_size = 16
    jobs = {"eager": {"parameters": 256, "seconds": 10.0}}
    result = train_step.measure(config, 1, jobs, sys.executable)
    against = result["against"]["eager"]
    # The third of its steps: two are warm-up.
    assert against["ratio_median"] == result["step_seconds_median"] / 30
    assert "30000.00 ms, 3 MiB" in train_step.table({"config": "x", "overrides": []} | result)


def test_mistakes_end_in_one_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        train_step.main(["--config=configs/nothing.py"])
    assert "configs/nothing.py: no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        train_step.main(
            ["--config=configs/digits.py", "--against=diffusers", "--config.model.remat=True"]
        )
    message = "--against=diffusers: config.model.remat = True has no equal there, only False"
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        train_step.main(["--config=configs/digits.py", "--steps=0"])


def test_synthetic_batch_lies_as_the_spec_says(fake):
    spec = train_step.run.build(base.get_config()).batch_spec
    batch = train_step.synthetic_batch(spec)
    for name, leaf in spec.items():
        assert (batch[name].shape, batch[name].dtype) == (leaf.shape, leaf.dtype)
        assert batch[name].sharding == leaf.sharding
    assert len(np.unique(batch["image"])) > 100
    assert not np.asarray(batch["label"]).any()
