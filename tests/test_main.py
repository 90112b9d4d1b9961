import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs import base
from training.config import load, save

ROOT = Path(__file__).parent.parent


def run(*arguments, script="main.py", **environment):
    variables = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    return subprocess.run(
        [sys.executable, script, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=variables | environment,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.trian.steps=5"], "--config.trian.steps: no such field; did you mean config.tr"),
        (["--config.train.steps=abc"], "--config.train.steps=abc: must be a whole number"),
        (["--config.train.steps=-1"], "config.train.steps = -1: must be 0 or more"),
        (["--config.train.steps", "5"], "'5' is no flag; write values as --flag=value"),
        (["train"], "'train' is no flag"),
        (["--config=configs/base.py:no"], "has no variant 'no'"),
        (["--config=configs/bsae.py"], "no such file; did you mean configs/base.py?"),
        (["--mode=trian"], "--mode=trian: no such mode; did you mean 'train'?"),
        (["--workdri=x"], "Did you mean: workdir ?"),
        (["--workdir="], "--workdir is missing"),
        (["--config="], "--config is missing"),
        (["--config=", "--mode=convert"], "--config is missing"),
        (["--config=", "--mode=sample"], "no run there (it has no config.json)"),
        (
            ["--config=configs/unclip_shapes.py", "--mode=generate", "--prompts=/dev/null"],
            "--prompts=/dev/null: has no prompt; write one on each line",
        ),
    ],
)
def test_a_mistake_ends_in_a_short_message_within_five_seconds(tmp_path, arguments, message):
    start = time.monotonic()
    result = run(f"--workdir={tmp_path}", "--config=configs/base.py", *arguments)
    assert time.monotonic() - start < 5
    assert result.returncode == 2
    assert result.stderr.startswith("main.py: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) <= 2
    assert result.stdout == ""


DRIVER = """
import errno, json, os, sys, types
sys.path.insert(0, '.')
from absl import app
import main

def train(config, workdir):
    print(json.dumps([workdir, config.to_dict(), type(config).__name__]))

def fail(config, workdir):
    raise main.ConfigError('config.data.source: gone')

def end(config, workdir):
    if main.FLAGS.mode == 'follow':
        raise RuntimeError('write() failed: ' + os.strerror(errno.ENOSPC))
    if main.FLAGS.mode == 'likelihood':
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'a.png')
    raise {'report': main.TrainingFailed, 'inspect': main.TryAgain}[main.FLAGS.mode]('so it ends')

def check(config):
    print('jax' in sys.modules, 'numpy' in sys.modules)

sys.modules['fake'] = types.SimpleNamespace(train=train, fail=fail, end=end)
main.MODES.update(train='fake:train', sample='fake:train', evaluate='fake:fail')
main.MODES.update(dict.fromkeys(('report', 'inspect', 'follow', 'likelihood'), 'fake:end'))
main.components.check = check
app.run(main.main, flags_parser=main.parse)
"""


@pytest.fixture
def driver(tmp_path):
    """main.py with modes that print what they are called with."""
    path = tmp_path / "driver.py"
    path.write_text(DRIVER)
    return path


def test_train_gets_the_frozen_config_and_jax_waits_for_its_check(driver, tmp_path):
    result = run(
        "--config.train.steps=5",
        "--config=configs/base.py",
        f"--workdir={tmp_path}",
        "--noconfig.log.tensorboard",
        script=driver,
    )
    jax_seen, called = result.stdout.splitlines()
    assert jax_seen.split()[0] == "False", "JAX was imported before the config was checked"
    workdir, config, kind = json.loads(called)
    expected = base.get_config()
    expected.train.steps = 5
    expected.log.tensorboard = False
    assert (workdir, kind) == (str(tmp_path), "FrozenConfigDict")
    assert load(config) == expected
    assert result.returncode == 0


def test_another_mode_takes_the_config_of_its_work_directory(driver, tmp_path):
    stored = base.get_config()
    stored.train.steps = 7
    save(stored, tmp_path / "config.json")
    result = run("--mode=sample", f"--workdir={tmp_path}", "--config.sample.count=9", script=driver)
    config = json.loads(result.stdout.splitlines()[1])[1]
    assert config["train"]["steps"] == 7
    assert config["sample"]["count"] == 9


def test_a_config_mistake_found_later_ends_the_same_way(driver, tmp_path):
    result = run(
        "--mode=evaluate", "--config=configs/base.py", f"--workdir={tmp_path}", script=driver
    )
    assert result.returncode == 2
    assert result.stderr == "main.py: config.data.source: gone\n"


@pytest.mark.parametrize(("mode", "code"), [("report", 3), ("inspect", 75)])
def test_expected_ends_are_a_line_and_an_exit_code(driver, tmp_path, mode, code):
    config = "--config=configs/base.py"
    result = run(f"--mode={mode}", config, f"--workdir={tmp_path}", script=driver)
    assert result.returncode == code
    assert result.stderr == "main.py: so it ends\n"


@pytest.mark.parametrize("mode", ["follow", "likelihood"])
def test_a_full_disk_is_a_line_and_the_same_command_again(driver, tmp_path, mode):
    config = "--config=configs/base.py"
    result = run(f"--mode={mode}", config, f"--workdir={tmp_path}", script=driver)
    assert result.returncode == 75
    (line,) = result.stderr.splitlines()
    assert re.search(r"No space left on device.*; what is written stays, make room", line)


def test_help_names_the_flags():
    result = run("--help")
    assert "--workdir" in result.stdout
    assert "configs/digits.py" in result.stdout
