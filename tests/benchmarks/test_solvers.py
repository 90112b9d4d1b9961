import json

import numpy as np
import pytest

from benchmarks import solvers
from configs import digits
from training import loop
from training.config import freeze


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    config = digits.get_config()
    config.model.update(
        channels=8, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), norm_groups=4
    )
    config.train.update(steps=1, batch_size=8)
    # One step has to move the last layer from zero.
    config.optimizer.update(learning_rate=0.1, warmup_steps=0)
    config.ema.default = "constant(decay=0.0)"
    config.log.update(preview_every=0, tensorboard=False)
    config.sample.update(batch_size=16, guidance=())
    loop.train(freeze(config), str(workdir))
    return workdir


def test_a_solver_gets_the_most_steps_that_its_calls_allow(run):
    found = solvers.Run(solvers.Workdir(run), "uniform_logsnr", 16)
    assert found.steps("ddim(eta=0.0)", 10) == 10
    assert found.steps("heun()", 10) == 5  # 9 calls
    assert found.steps("dpmpp_3s()", 10) == 4  # 10 calls
    assert found.steps("rk4()", 3) == 1  # 1 call, straight to the data


def test_the_files_say_what_was_measured(run, tmp_path, monkeypatch):
    chosen = {name: solvers.SOLVERS[name] for name in ("DDIM", "DDPM, fixed large")}
    monkeypatch.setattr(solvers, "SOLVERS", chosen)
    monkeypatch.setattr(solvers, "CALLS", (2, 8))
    monkeypatch.setattr(solvers, "REFERENCE", ("ddim(eta=0.0)", 8))
    solvers.main([f"--workdir={run}", f"--out={tmp_path / 'table'}", "--count=20"])
    cells = json.loads((tmp_path / "table.json").read_text())["cells"]
    assert [(c["solver"], c["calls"]) for c in cells] == [
        ("DDIM", 2),
        ("DDIM", 8),
        ("DDPM, fixed large", 2),
        ("DDPM, fixed large", 8),
    ]
    # Against itself, and not at all for one that adds noise.
    assert cells[1]["error"] == 0.0 < cells[0]["error"]
    assert "error" not in cells[2]
    assert np.isfinite([c["distance"] for c in cells]).all()
    assert "| DDIM | " in (tmp_path / "table.md").read_text()
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
