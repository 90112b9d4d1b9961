import json

import numpy as np
import pytest

from configs import base
from evaluation import image_sets, job
from training.components import ConfigError
from training.workdir import Workdir

CONFIG = base.get_config()
CONFIG.evaluate.metrics = ("mean", "mean(power=2)")


@pytest.fixture
def calls(monkeypatch):
    """A metric that counts its calls."""
    calls = []

    def mean(power: int = 1):
        def metric(images, labels, config):
            calls.append(power)
            return {"mean": float((images.astype(float) ** power).mean()), "classes": labels}

        return metric

    monkeypatch.setattr(job, "METRICS", {"mean": mean})
    return calls


def add_samples(path, name, time, value):
    out = path / "samples" / name
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / "samples.npz", arr_0=np.full((2, 4, 4, 1), value, np.uint8))
    (out / "info.json").write_text(json.dumps({"count": 2, "provenance": {"time": time}}))


def rows(path):
    return [json.loads(s) for s in (path / "evaluation" / "mean.jsonl").read_text().splitlines()]


def test_a_row_for_each_metric_with_provenance(tmp_path, calls, capsys):
    add_samples(tmp_path, "first", "2025-01-01T00:00:00+00:00", 3)
    job.evaluate(CONFIG, tmp_path)
    one, two = rows(tmp_path)
    assert (one["metric"], one["values"]) == ("mean", {"mean": 3.0, "classes": None})
    assert (two["metric"], two["values"]["mean"]) == ("mean(power=2)", 9.0)
    assert one["samples"] == "first"
    assert one["info"]["count"] == 2
    assert set(one["provenance"]["code"]) == {"commit", "dirty"}
    assert "jax" in one["provenance"]["versions"]
    assert '"mean": 9.0' in capsys.readouterr().out


def test_nothing_is_computed_twice(tmp_path, calls, capsys):
    add_samples(tmp_path, "first", "2025-01-01T00:00:00+00:00", 3)
    job.evaluate(CONFIG, tmp_path)
    first = capsys.readouterr().out
    job.evaluate(CONFIG, tmp_path)
    assert calls == [1, 2]
    assert len(rows(tmp_path)) == 2
    assert capsys.readouterr().out == first


def test_changed_samples_of_the_same_name_are_new(tmp_path, calls):
    add_samples(tmp_path, "first", "2025-01-01T00:00:00+00:00", 3)
    job.evaluate(CONFIG, tmp_path)
    add_samples(tmp_path, "first", "2025-01-01T00:00:00+00:00", 5)
    job.evaluate(CONFIG, tmp_path)
    assert [row["values"]["mean"] for row in rows(tmp_path)] == [3.0, 9.0, 5.0, 25.0]


def test_newest_finished_samples_are_taken(tmp_path):
    add_samples(tmp_path, "b", "2025-01-02T00:00:00+00:00", 1)
    add_samples(tmp_path, "a", "2025-01-03T00:00:00+00:00", 2)
    add_samples(tmp_path, "c", "2025-01-01T00:00:00+00:00", 3)
    (tmp_path / "samples" / "unfinished").mkdir()
    assert image_sets.newest_samples(Workdir(tmp_path)).name == "a"


def test_errors(tmp_path, calls):
    with pytest.raises(ConfigError, match="make some first"):
        job.evaluate(CONFIG, tmp_path)
    with pytest.raises(ConfigError, match="name at least one"):
        job.evaluate(base.get_config(), tmp_path)
    wrong = base.get_config()
    wrong.evaluate.metrics = ("maen",)
    with pytest.raises(ConfigError, match=r"config.evaluate.metrics = 'maen'.*mean"):
        job.evaluate(wrong, tmp_path)
    assert calls == []
