import functools
import json
import sys
from pathlib import Path

import jax
import pytest

from benchmarks import peer, sampler
from configs import digits
from training import components
from training.config import freeze
from training.flops import count_flops
from training.tasks.diffusion import DiffusionTask

STANDIN = Path(__file__).with_name("standin.py")


GUIDED = ("classifier_free(scale=2.0)",)


@pytest.fixture(autouse=True)
def allocator_as_it_was(monkeypatch):
    """What it sets would stay for all tests of this process."""
    monkeypatch.setattr(sampler.allocator, "keep_freed_memory", lambda: None)


def tiny():
    config = digits.get_config("smoke")
    config.model.update(channels=32, channel_mult=(1,), attention_resolutions=())
    config.sample.update(solver="ddim(eta=0.0)", steps=3, batch_size=8, guidance=GUIDED)
    return config


def test_measures_draws_in_turn_with_a_peer(monkeypatch):
    config = freeze(tiny())
    task = DiffusionTask(config)
    params = jax.eval_shape(task.init, jax.random.key(0))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    monkeypatch.setattr(sampler.peer, "against", functools.partial(peer.against, program=STANDIN))
    jobs = {"eager": {"parameters": parameters, "seconds": 0.5}}
    result = sampler.measure(config, 2, jobs, sys.executable)
    assert result["parameters"] == parameters
    assert (result["network_calls_per_image"], result["draws"]) == (6, 2)
    assert result["images_per_second"] == 8 / result["draw_seconds_median"]
    against = result["against"]["eager"]
    # The first of its steps is warm-up.
    assert against["step_seconds_median"] == 1.25
    assert against["ratio_median"] == pytest.approx(result["draw_seconds_median"] / 1.25, rel=0.9)
    network = count_flops(
        task.network.apply,
        task.split(params)[0],
        jax.ShapeDtypeStruct((16, 8, 8, 1), "float32"),
        jax.ShapeDtypeStruct((16,), "float32"),
        {"label": jax.ShapeDtypeStruct((16,), "int32")},
    )
    assert result["flops_per_draw"] == pytest.approx(3 * network, rel=0.01)


def test_command_line_to_table_and_json(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(components, "check", lambda config: None)
    monkeypatch.setattr(sampler.command_line, "read", lambda path: tiny())
    path = tmp_path / "out.json"
    sampler.main(
        [
            "--config=configs/digits.py:smoke",
            "--config.sample.guidance=()",
            "--config.task=diffusion()",
            "--draws=1",
            f"--json={path}",
        ]
    )
    printed = capsys.readouterr().out
    assert "ddim(eta=0.0), 3 steps, 3 network calls an image" in printed
    assert "unknown peak" in printed
    result = json.loads(path.read_text())
    assert (result["batch_size"], result["draws"], result["against"]) == (8, 1, {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--draws=0"], "--draws=0: must be at least 1"),
        (["--config.sample.batch_size=7"], "config.sample.batch_size: 7 images cannot be shared"),
        (
            ["--against=diffusers", "--config.sample.grid=uniform"],
            "--against=diffusers: config.sample.grid = 'uniform' has no equal there",
        ),
        (["--against=diffusers"], "has no equal there, only ()"),
        (["--against=diffusers", "--peer-modes=fast"], "--peer-modes=fast: allowed are"),
    ],
)
def test_mistakes_end_in_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sampler.command_line, "read", lambda path: tiny())
    with pytest.raises(SystemExit, match="2"):
        sampler.main(["--config=configs/digits.py", *arguments])
    assert message in capsys.readouterr().err.replace("\n", "")
