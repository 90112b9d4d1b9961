"""What all launchers have in common: the command line, jobs, and the decision to start again."""

import json
import re
import shlex
import subprocess
import sys

import pytest

from launch import attempts
from launch.__main__ import LAUNCHERS, main
from launch.attempts import Attempts
from launch.job import Job, logs, resource_name, resource_names
from tests.launch.programs import ROOT, launcher
from training.exit_codes import DONE, FAILED, MISTAKE, RETRY

LOCAL = ["local", "--config=configs/digits.py", "--workdir=/runs/a"]


def test_the_argv_of_a_process():
    job = Job("w", "c.py", "sample", ("--config.seed=1",), ("--prompt=a b",), (("A", "b c"),))
    start = [sys.executable, str(ROOT / "main.py"), "--config=c.py", "--workdir=w", "--mode=sample"]
    assert job.argv() == [*start, "--prompt=a b", "--config.seed=1"]
    argv = job.argv(coordinator="h:1", processes=2, process=1)
    assert argv[-3:] == ["--coordinator=h:1", "--processes=2", "--process=1"]
    line = job.command(coordinator="none")
    assert line.startswith("A='b c' ")
    assert shlex.split(line)[1:] == job.argv(coordinator="none")


def test_a_shell_reads_what_a_dry_run_prints(capsys):
    assert main([*LOCAL, "--dry-run", "--env=A=b 'c'", "--config.sample.solver=ddim(eta=0.0)"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    program = f"{sys.executable} {ROOT / 'main.py'}"
    printed = line.replace(program, "printf '%s\\n' \"$A\"")
    shown = subprocess.run(
        ["bash", "-c", f"set -e; A=x; {printed}"], capture_output=True, text=True
    )
    assert shown.returncode == 0
    assert "--config.sample.solver=ddim(eta=0.0)" in shown.stdout.splitlines()
    assert shlex.split(line)[0] == "A=b 'c'"


def test_where_names_are_those_of_clusters():
    assert resource_name("Runs/Digits_1", 40) == "runs-digits-1"
    assert resource_name("3rd", 40) == "run-3rd"
    long = [resource_name("x" * 60 + letter, 40) for letter in "ab"]
    assert len(set(long)) == 2
    assert all(re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name) for name in long)
    assert resource_names([Job("gs://b/runs/digits")], None, 40) == ["digits"]
    swept = [Job(f"/r/d/seed={seed}", name=f"seed={seed}") for seed in range(2)]
    assert resource_names(swept, None, 40) == ["d-0", "d-1"]


def test_logs_are_on_a_disk(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert logs("/runs/a").as_posix() == "/runs/a/logs"
    assert logs("gs://bucket/runs/a") == tmp_path / "logs" / "bucket-runs-a"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["locl"], "did you mean 'local'?"),
        (["local", "--config=configs/digits.py"], "--workdir is missing"),
        ([*LOCAL, "--procesess=2"], "--procesess: no such option; did you mean 'processes'?"),
        ([*LOCAL, "--env=A"], "must be NAME=VALUE"),
        ([*LOCAL, "--processes=2"], "say what each of them has"),
        ([*LOCAL, "--processes=0"], "--processes=0: must be 1 or more"),
        ([*LOCAL, "--processes=3", "--gpus=0,1"], "multiple of --processes=3"),
        ([*LOCAL, "--gpus=0,0"], "each once"),
        ([*LOCAL, "--processes=2", "--devices=1", "--coordinator=auto"], "must be left out"),
        ([*LOCAL, "--mode=tain"], "no such mode"),
        ([*LOCAL, "--config.train.stepz=1"], "did you mean config.train.steps?"),
        ([*LOCAL, "--config.train.steps=-1"], "config.train.steps = -1: must be 0 or more"),
        (["local", "--config=configs/digit.py", "--workdir=w"], "did you mean configs/digits.py?"),
        (["local", "--workdir=w"], "--config is missing"),
    ],
)
def test_mistakes_cost_nothing(given, said, capsys):
    try:
        status = main(given)
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert said in capsys.readouterr().err


def test_flags_of_main_are_handed_on(capsys):
    given = ["local", "--config=configs/unclip_shapes.py", "--workdir=w", "--mode=generate"]
    assert main([*given, "--prompt=a red circle", "--dry-run"]) == 0
    assert "'--prompt=a red circle'" in capsys.readouterr().out


def test_help_names_every_command(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"python -m launch {name}" in text for name in [*LAUNCHERS, "plan"])


def test_the_supervisor_needs_no_jax():
    code = (
        "import sys; from launch.__main__ import main; "
        f"main({[*LOCAL, '--dry-run']!r}); sys.exit('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (-9, "signal SIGKILL"),
        (143, "signal SIGTERM"),
        (1, "status 1 (a crash)"),
        (75, "status 75 (to be started again)"),
        (255, "status 255 (a crash)"),
    ],
)
def test_statuses_in_words(status, words):
    assert attempts.describe(status) == words


def checkpoint(workdir, path):
    (workdir / path).mkdir(parents=True)


def test_who_starts_again(tmp_path):
    counted = Attempts(str(tmp_path), retries=2)
    counted.begin()
    assert [counted.again(status)[0] for status in (DONE, MISTAKE, FAILED)] == [False] * 3
    assert [counted.again(1)[0] for _ in range(3)] == [True, True, False]
    assert counted.again(RETRY)[0]
    checkpoint(tmp_path, "checkpoints/10.orbax-checkpoint-tmp")
    assert not counted.again(-9)[0]
    checkpoint(tmp_path, "checkpoints/10")
    assert counted.again(-9)[0]
    for _ in range(2):
        counted.again(1)
    assert not counted.again(1)[0]
    checkpoint(tmp_path, "prior/checkpoints/5")  # a stage of a stack
    assert counted.again(1)[0]


def test_delays_double_up_to_five_minutes(tmp_path):
    counted = Attempts(str(tmp_path), retries=0)
    delays = []
    for _ in range(9):
        counted.again(RETRY)
        delays.append(counted.delay(5.0))
    assert delays == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0, 300.0]
    checkpoint(tmp_path, "checkpoints/1")
    counted.again(RETRY)
    assert counted.delay(5.0) == 5.0


def test_a_directory_that_cannot_be_read_does_not_end_a_run(tmp_path, monkeypatch, capsys):
    def fail(workdir):
        raise OSError("no answer")

    monkeypatch.setattr(attempts, "checkpoints", fail)
    assert Attempts(str(tmp_path), retries=1).again(1)[0]
    assert "cannot be read (no answer)" in capsys.readouterr().err


def test_attempts_are_remembered_in_a_file(tmp_path):
    file = tmp_path / "attempts.json"
    attempts.main(["begin", str(file), str(tmp_path)])
    assert attempts.main(["end", str(file), "137", "--retries=1"]) == 0
    attempts.main(["begin", str(file), str(tmp_path)])
    assert json.loads(file.read_text())["fruitless"] == 1
    assert attempts.main(["end", str(file), "75", "--retries=1"]) == 1
    checkpoint(tmp_path, "checkpoints/3")
    assert attempts.main(["end", str(file), "75", "--retries=1"]) == 0


@pytest.mark.slow
def test_a_real_run(tmp_path):
    from tests.launch.programs import MAIN, TINY

    given = ["--processes=2", "--devices=2", f"--program={MAIN}", f"--workdir={tmp_path}"]
    done = subprocess.run(
        launcher("local", *TINY, *given), cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "on 4 x cpu" in done.stdout
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").open()]
    assert steps == [1, 2, 3, 4]
