import json

import pytest

import input_pipeline
from benchmarks import long_run


def test_watches_the_real_loop(tmp_path, capsys, monkeypatch, one_device):
    # It cannot be undone, and this process has other tests to run.
    monkeypatch.setattr(long_run.allocator, "keep_freed_memory", lambda: None)
    original = input_pipeline.device_batches
    out = tmp_path / "out.json"
    long_run.main(
        [
            "--config=configs/digits.py:smoke",
            "--steps=100",
            f"--json={out}",
            "--config.train.batch_size=8",
            "--config.model.channels=32",
            "--config.model.channel_mult=1,",
            "--config.model.attention_resolutions=()",
            "--config.log.preview_every=0",
            "--config.log.tensorboard=False",
            "--config.checkpoint.every=50",
        ]
    )
    result = json.loads(out.read_text())
    assert result["steps"] == 100
    assert len(result["resident_bytes"]) == 10
    assert 0 < result["median_seconds"] <= result["p99_seconds"] <= result["longest_seconds"]
    assert "p99 / median" in capsys.readouterr().out
    assert input_pipeline.device_batches is original


def test_too_short_is_refused(capsys):
    with pytest.raises(SystemExit):
        long_run.main(["--config=configs/digits.py:smoke", "--steps=5"])
    assert "--steps=5: must be 100 or more" in capsys.readouterr().err
