import json
import mmap

import numpy as np
import pytest

from benchmarks import loader
from configs import base
from training.config import freeze


def test_measures_each_number_of_workers(monkeypatch):
    monkeypatch.setattr(loader, "_SECONDS_A_SAMPLE", 0.02)
    config = base.get_config()
    config.train.batch_size = 32
    result = loader.measure(freeze(config), (), (0,), seconds=0.2, repeats=2)
    assert (result["examples"], result["fields"]) == (1438, ["image", "label"])
    row = result["workers"]["0"]
    assert len(row["examples_per_second"]) == 2
    assert min(row["examples_per_second"]) > 100
    assert row["bytes_per_example"] == 8 * 8 + 4
    assert row["resident_bytes"] > 2**20
    assert abs(row["resident_bytes_growth_per_second"]) < 2**40


def test_command_line_to_table_and_json(tmp_path, capsys):
    path = tmp_path / "out.json"
    loader.main(
        [
            "--config=configs/digits.py",
            "--config.train.batch_size=64",
            "--workers=0",
            "--fields=image",
            "--seconds=0.05",
            "--repeats=1",
            f"--json={path}",
        ]
    )
    printed = capsys.readouterr().out
    assert "1,438 examples, batches of 64, image, augmentations: none" in printed
    result = json.loads(path.read_text())
    assert result["overrides"] == ["--config.train.batch_size=64"]
    (rate,) = result["workers"]["0"]["examples_per_second"]
    assert f"{rate:,.0f}" in printed


def test_slope():
    times = np.arange(10.0)
    assert loader.slope(list(zip(times, 5 + 3 * times, strict=True))) == pytest.approx(3)
    filling = [(t, 100.0 if t >= 2 else 0.0) for t in times]
    assert loader.slope(filling) == pytest.approx(0, abs=1e-9)
    assert loader.slope([(0.0, 1.0)]) is None


def test_memory_counts_what_is_held():
    before = loader.resident_bytes()
    # A mapping of its own: an array may lie in memory that was freed before, and is counted.
    with mmap.mmap(-1, 2**25) as held:
        for _ in range(2**5):
            held.write(bytes(2**20))
        assert 2**24 < loader.resident_bytes() - before < 2**27


@pytest.mark.parametrize("mistake", ["--workers=0,x", "--repeats=0", "--config.train.stpes=1"])
def test_mistakes_end_in_one_line(mistake, capsys):
    with pytest.raises(SystemExit, match="2"):
        loader.main(["--config=configs/digits.py", mistake])
    assert mistake.split("=")[0] in capsys.readouterr().err
