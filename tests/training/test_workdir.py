import json
import os
import subprocess
from pathlib import Path

import pytest
from etils.epath import testing as epath_testing

from configs import base
from training import workdir as workdir_module
from training.components import ConfigError
from training.files import atomic_write
from training.metrics import MetricsWriter
from training.workdir import Workdir, code_version


def _config(steps=10):
    config = base.get_config()
    config.train.steps = steps
    return config


def test_start_records_config_and_what_ran(tmp_path):
    workdir = Workdir(tmp_path / "new" / "run")
    workdir.start(_config(), ["main.py", "--config=x.py"])
    assert workdir.read_config() == _config()
    (entry,) = json.loads(workdir.run.read_text())
    assert entry["command"] == ["main.py", "--config=x.py"]
    assert entry["devices"]["platform"] == "cpu"
    assert set(entry["versions"]) == {
        "python", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy",
    }  # fmt: skip
    assert entry["time"].endswith("+00:00")
    assert "config_changes" not in entry


def test_second_start_appends_and_lists_changed_fields(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.start(_config(), ["first"])
    workdir.start(_config(steps=20), ["second"])
    first, second = json.loads(workdir.run.read_text())
    assert (first["command"], second["command"]) == (["first"], ["second"])
    assert second["config_changes"] == {"train.steps": [10, 20]}
    assert workdir.read_config().train.steps == 20


def test_unwritable_directory_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(
        ConfigError, match=r"--workdir=.*file/run cannot be written \(Not a directory"
    ):
        Workdir(tmp_path / "file" / "run").start(_config(), [])


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir_module.jax, "process_index", lambda: 1)
    Workdir(tmp_path / "run").start(_config(), [])
    assert not (tmp_path / "run").exists()


def test_read_config_of_no_run(tmp_path):
    with pytest.raises(ConfigError, match="no run was started there"):
        Workdir(tmp_path).read_config()


def test_atomic_write_leaves_the_old_file_when_killed_before_the_rename(tmp_path, monkeypatch):
    path = tmp_path / "file"
    atomic_write(path, b"old")

    def killed(source, target):
        assert Path(source).read_bytes() == b"new"
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"


def test_bucket_urls(tmp_path):
    """A fake bucket in a local directory that refuses to append and rename."""

    def local(original, path, *args, **kwargs):
        assert args[:1] != ("ab",)
        return original(str(path).replace("gs:/", str(tmp_path), 1), *args, **kwargs)

    def refuse(*_):
        raise AssertionError("a bucket has no rename")

    with epath_testing.mock_epath(
        open=local, exists=local, mkdir=local, makedirs=local, rename=refuse, replace=refuse
    ):
        workdir = Workdir("gs://bucket/run")
        workdir.start(_config(), ["main.py"])
        assert workdir.read_config() == _config()
        writer = MetricsWriter(workdir, tensorboard=False)
        for step in (1, 2, 3):
            writer.scalars(step, {"loss": 0.5})
        MetricsWriter(workdir, tensorboard=False).rewind(2)
    assert (tmp_path / "bucket" / "run" / "config.json").exists()
    lines = (tmp_path / "bucket" / "run" / "metrics.jsonl").read_text()
    assert lines == '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.5}\n'


def _git(root, *arguments):
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", root, *author, *arguments], check=True, capture_output=True)


def test_code_version_of_a_checkout(tmp_path):
    _git(tmp_path, "init")
    (tmp_path / "code.py").write_text("x = 1\n")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-m", "first")
    clean = code_version(tmp_path)
    assert len(clean["commit"]) == 40
    assert clean == {"commit": clean["commit"], "dirty": False, "diff": "", "untracked": []}

    (tmp_path / "code.py").write_text("x = 2\n")
    (tmp_path / "new.py").write_text("")
    changed = code_version(tmp_path)
    assert changed["commit"] == clean["commit"]
    assert changed["dirty"]
    assert "-x = 1\n+x = 2\n" in changed["diff"]
    assert changed["untracked"] == ["new.py"]


def test_code_version_outside_a_checkout(tmp_path, monkeypatch):
    missing = code_version(tmp_path)
    assert missing["commit"] is None
    assert "not a git repository" in missing["reason"]

    _git(tmp_path, "init")
    (tmp_path / "copied").mkdir()
    inside = code_version(tmp_path / "copied")
    assert inside["commit"] is None
    assert "not the top" in inside["reason"]

    monkeypatch.setenv("PATH", "")
    assert code_version(tmp_path)["reason"] == "git is not installed"
