"""Cloud TPU, with a gcloud that plays the states of machines and runs what they are told here."""

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import tpu
from launch.__main__ import main
from launch.job import Job
from tests.launch.programs import DUMMY, ROOT, fake, launcher

# Plays one queued resource: states.json holds what `describe` says, one a call, the last for good.
# ssh runs the command in a home for each machine; scp copies there.
GCLOUD = """\
#!/usr/bin/env python3
import json, os, pathlib, shutil, subprocess, sys
here = pathlib.Path(os.environ["FAKE_GCLOUD"])
with (here / "calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
assert sys.argv[1:4] == ["compute", "tpus", "queued-resources"]
verb, *rest = sys.argv[4:]
options = dict(word[2:].partition("=")[::2] for word in rest if word.startswith("--"))
words = [word for word in rest if not word.startswith("--")]
homes = [here / f"home-{i}" for i in range(2 if options.get("worker") == "all" else 1)]
if verb == "create":
    (here / "there").touch()
    sys.exit(int(os.environ.get("FAKE_CREATE", 0)))
if verb == "delete":
    (here / "there").unlink()
if verb == "describe":
    if not (here / "there").exists():
        sys.exit("ERROR: NOT_FOUND: Resource was not found")
    states = json.loads((here / "states.json").read_text())
    print(states[0])
    (here / "states.json").write_text(json.dumps(states[1:] or states))
if verb == "scp":
    for home in homes:
        home.mkdir(exist_ok=True)
        shutil.copy(words[0], home / words[1].partition(":")[2])
if verb == "ssh":
    statuses = []
    for home in homes:
        home.mkdir(exist_ok=True)
        env = os.environ | {"HOME": str(home)}
        statuses.append(subprocess.call(["bash", "-c", options["command"]], cwd=home, env=env))
    sys.exit(max(statuses))
"""
# Installs nothing: its environment is the one of this test. The code starts the dummy, for main.py.
UV = f"""\
#!/bin/sh
if [ "$1" = venv ]; then
  mkdir -p .venv/bin
  printf '#!/bin/sh\\nexec {shlex.quote(sys.executable)} "$@"\\n' >.venv/bin/python
  chmod +x .venv/bin/python
  {{ echo 'import os, sys'
    echo 'if __name__ == "__main__":'
    echo '    os.execv(sys.executable, [sys.executable, "{DUMMY}", *sys.argv[1:]])'
    cat main.py; }} >with_dummy && mv with_dummy main.py
fi
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """Makes the launcher's arguments for a fake gcloud; what that is asked is in `calls`."""
    if not (ROOT / ".git").exists():
        pytest.skip("the code that is sent is a commit, and this is no git repository")
    here = tmp_path / "cloud"
    commands = fake(here, "gcloud", GCLOUD)
    fake(commands, "python3", f'#!/bin/sh\n[ "$2" = pip ] || exec {sys.executable} "$@"\n')
    for machine in range(2):
        home = here / f"home-{machine}" / ".local" / "bin"
        home.mkdir(parents=True)
        fake(home, "uv", UV)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_GCLOUD", str(here))
    monkeypatch.chdir(ROOT)

    def arguments(states: list[str], plan: str, *more: str) -> list[str]:
        (here / "states.json").write_text(json.dumps(states))
        given = ["--config=configs/digits.py", f"--workdir={tmp_path / 'run'}", "--name=my-run"]
        given += ["--accelerator-type=v5litepod-16", "--zone=us-west4-a", "--poll=0.1"]
        return ["tpu", *given, f"--env=DUMMY={plan}", *more]

    arguments.folder = here
    yield arguments
    # What runs on the machines outlives the launcher, as it should.
    for pid in {int(line) for file in (tmp_path / "run").glob("starts-*") for line in file.open()}:
        end = time.monotonic() + 20
        while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
            time.sleep(0.1)
        assert not Path(f"/proc/{pid}").exists()


def verbs(folder: Path) -> list[str]:
    calls = [json.loads(line) for line in (folder / "calls").open()]
    told = [call[3] for call in calls]
    return [verb for i, verb in enumerate(told) if verb != "describe" or told[i - 1] != verb]


def test_from_nothing_to_done(cloud, tmp_path, capfd):
    states = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    status = main(cloud(states, "sleep=1+done"))
    output = capfd.readouterr().out
    assert status == 0, output
    assert verbs(cloud.folder) == ["describe", "create", "describe", "scp", *["ssh"] * 3, "delete"]
    assert "is PROVISIONING" in output
    assert re.search(r"start \d of 0: --config=configs/digits.py --coordinator=auto", output)
    assert "the run ended by status 0 (done)" in output
    # Both machines ran it, from the commit's files.
    assert len((tmp_path / "run" / "starts-0").read_text().splitlines()) == 2
    codes = [list(cloud.folder.glob(f"home-{i}/my-run/code-*/docs/training.md")) for i in (0, 1)]
    assert [len(code) for code in codes] == [1, 1]


def test_preempted_machines_are_asked_for_again(cloud):
    (cloud.folder / "there").touch()
    assert main(cloud(["SUSPENDING", "SUSPENDED", "ACTIVE"], "done", "--keep")) == 0
    start = ["describe", "delete", "describe", "create", "describe", "scp", "ssh", "ssh", "ssh"]
    assert verbs(cloud.folder) == start


def test_a_mistake_ends_it(cloud, capfd):
    assert main(cloud(["ACTIVE"], "mistake")) == 2
    assert "status 2 (a mistake)" in capfd.readouterr().out
    assert verbs(cloud.folder)[-1] == "delete"


def test_machines_that_cannot_be_made_ready_are_left_at_last(cloud, capfd):
    for machine in range(2):
        (cloud.folder / f"home-{machine}" / ".local" / "bin" / "uv").write_text("exit 9")
    assert main(cloud(["ACTIVE"], "done")) == 1
    shown = capfd.readouterr().out
    assert shown.count("gcloud ssh failed with status 9") == tpu.TRIES
    assert "cannot be made ready; they are kept" in shown
    assert "delete" not in verbs(cloud.folder)


def test_a_refused_request_ends_it(cloud, capfd, monkeypatch):
    monkeypatch.setenv("FAKE_CREATE", "1")
    assert main(cloud(["ACTIVE"], "done")) == 1
    assert "gcloud create failed" in capfd.readouterr().out
    assert verbs(cloud.folder) == ["describe", "create"]


@pytest.mark.slow
def test_the_run_outlives_the_launcher_and_is_followed_again(cloud, tmp_path):
    starts, log = tmp_path / "run" / "starts-0", tmp_path / "log"
    given = cloud(["ACTIVE"], "sleep=6+done", "--keep")
    with log.open("w") as file:
        first = subprocess.Popen(launcher(*given), stdout=file, start_new_session=True)
    try:
        end = time.monotonic() + 100
        while not (starts.exists() and len(starts.read_text().splitlines()) == 2):
            assert time.monotonic() < end
            time.sleep(0.1)
        time.sleep(0.5)
        first.send_signal(signal.SIGTERM)
        assert first.wait(20) == 75
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)
    assert "the same command follows it again" in log.read_text()
    assert "queued-resources delete my-run" in log.read_text()
    assert main(given) == 0
    # It did not start a second time.
    assert len(starts.read_text().splitlines()) == 2


def options(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    tpu.add_options(parser)
    parsed = parser.parse_args(["--accelerator-type=v6e-16", *given])
    tpu.check_options(parsed)
    return parsed


def commands(*given: str) -> list[list[str]]:
    job = Job("gs://bucket/run", "configs/digits.py", env=(("NAME", "a b"),))
    machines = tpu.Machines("my-run", job, options(*given), "c" * 40)
    made = [machines.create(), machines.state(), machines.delete()]
    return [*made, *machines.prepare(), machines.start(), machines.follow()]


def test_slices_of_one_run():
    create = commands("--slices=3", "--spot")[0]
    assert {"--node-count=3", "--node-prefix=my-run", "--spot"} <= set(create)
    assert "--runtime-version=v2-alpha-tpuv6e" in create


def test_a_repository_is_cloned_at_the_commit():
    made = commands("--repository=https://example.org/code.git")
    assert not any("scp" in command for command in made)
    install = made[3][-1] + made[3][-2] + str(made[3])
    assert "git clone --quiet https://example.org/code.git" in install
    assert f"checkout --quiet {'c' * 40}" in install


@pytest.mark.parametrize("given", [(), ("--slices=2", "--reserved", "--repository=u")])
def test_scripts_are_bash(given):
    for command in commands(*given):
        for word in command:
            if word.startswith("--command="):
                script = word.removeprefix("--command=")
                subprocess.run(["bash", "-n", "-c", script], check=True)


@pytest.mark.skipif(not shutil.which("gcloud"), reason="the Google Cloud CLI is not installed")
@pytest.mark.parametrize(
    "given",
    [
        ("--zone=z", "--project=p", "--spot"),
        ("--slices=2", "--reserved", "--gcloud=--network=n", "--ssh=--tunnel-through-iap"),
    ],
)
@pytest.mark.slow
def test_gcloud_knows_the_options(given, tmp_path, monkeypatch):
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("CLOUDSDK_CORE_DISABLE_PROMPTS", "1")
    for command in commands(*given):
        # Its linter does not read scripts.
        line = shlex.join("--command=true" if "--command" in word else word for word in command)
        lint = ["gcloud", "meta", "lint-gcloud-commands", f"--command-string={line}"]
        done = subprocess.run(lint, capture_output=True, text=True, check=False)
        assert json.loads(done.stdout)[0]["success"], done.stdout[-500:]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--workdir=runs/a", "--accelerator-type=v4-8"], "--workdir=runs/a: must be a bucket"),
        (["--workdir=gs://b/a"], "--accelerator-type is missing"),
        (["--workdir=gs://b/a", "--accelerator-type=v9-8"], "--runtime-version is missing"),
        (["--workdir=gs://b/a", "--accelerator-type=v4-8", "--slices=0"], "--slices=0"),
    ],
)
def test_wrong_options_are_told(capsys, given, said):
    assert main(["tpu", "--config=configs/digits.py", "--dry-run", *given]) == 2
    assert said in capsys.readouterr().err


def test_a_config_outside_of_the_repository_is_refused(capsys, tmp_path):
    config = tmp_path / "mine.py"
    config.write_text((ROOT / "configs" / "digits.py").read_text())
    given = [f"--config={config}", "--workdir=gs://b/a", "--accelerator-type=v4-8", "--dry-run"]
    assert main(["tpu", *given]) == 2
    assert "must be in the repository" in capsys.readouterr().err
