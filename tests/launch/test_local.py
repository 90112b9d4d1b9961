"""The supervisor, with a program that ends as it is told to in the place of main.py."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DUMMY = Path(__file__).parent / "dummy.py"
HARD_LIMIT = 60


@pytest.fixture
def start(tmp_path):
    """Starts `python -m launch local` in a session of its own, which is ended with the test."""
    started = []

    def start(
        plan: str, *options: str, workdir: str = "run", output: Path | None = None
    ) -> subprocess.Popen:
        command = [sys.executable, "-m", "launch", "local", "--config=configs/digits.py:smoke"]
        command += [f"--workdir={tmp_path / workdir}", f"--program={DUMMY}", f"--env=DUMMY={plan}"]
        command += ["--delay=0.05", "--grace=1", *options]
        output = output or tmp_path / f"output-{len(started)}"
        launcher = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=output.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        launcher.output = output
        started.append(launcher)
        return launcher

    yield start
    for launcher in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()
    for pid in pids(tmp_path):
        assert not alive(pid), "a process of the run is left"


def run(launcher: subprocess.Popen) -> tuple[int, str]:
    return launcher.wait(HARD_LIMIT), launcher.output.read_text()


def pids(folder: Path) -> list[int]:
    files = [*folder.rglob("starts-*"), *folder.rglob("child")]
    return [int(line) for file in files for line in file.read_text().split()]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition) -> None:
    end = time.monotonic() + HARD_LIMIT
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def starts(folder: Path, process: int = 0) -> int:
    file = folder / f"starts-{process}"
    return len(file.read_text().splitlines()) if file.exists() else 0


def log(folder: Path, process: int = 0) -> str:
    file = folder / "logs" / f"process-{process}.log"
    return file.read_text() if file.exists() else ""


def test_crashes_are_tried_again(start, tmp_path):
    status, output = run(start("crash|signal=11|done"))
    assert status == 0
    assert starts(tmp_path / "run") == 3
    assert "process 0 ended by status 1 (a crash)" in output
    assert "process 0 ended by signal SIGSEGV" in output
    assert str(tmp_path / "run" / "logs" / "process-0.log") in output
    # Process 0 is heard, and its log is appended to.
    for text in (output, log(tmp_path / "run")):
        assert re.findall(r"start (\d) of 0:", text) == ["0", "1", "2"]
    heads = re.findall(r"^--- start (\d) of process 0, .*dummy\.py", log(tmp_path / "run"), re.M)
    assert heads == ["1", "2", "3"]


def test_a_full_disk_under_its_output_does_not_stop_a_run(start, tmp_path):
    # What is written to this device fails as on a full disk.
    start("crash|done", output=Path("/dev/full")).wait(HARD_LIMIT)
    assert starts(tmp_path / "run") == 2
    assert re.findall(r"start (\d) of 0:", log(tmp_path / "run")) == ["0", "1"]


def test_another_launch_appends_to_the_logs(start, tmp_path):
    for _ in range(2):
        assert run(start("done"))[0] == 0
    assert log(tmp_path / "run").count("--- start 1 of process 0") == 2


@pytest.mark.parametrize(("action", "status"), [("mistake", 2), ("failed", 3)])
def test_what_would_not_help_is_not_tried(start, tmp_path, action, status):
    assert run(start(f"{action}|done"))[0] == status
    assert starts(tmp_path / "run") == 1


def test_a_mistake_of_one_is_not_tried_again_though_another_aborted_first(start, tmp_path):
    launcher = start("await=ready+signal=6/regret|done", "--processes=2", "--devices=1")
    assert run(launcher)[0] == 2
    assert starts(tmp_path / "run") == 1


def test_retries_end_without_progress(start, tmp_path):
    status, output = run(start("crash", "--retries=2"))
    assert status == 1
    assert starts(tmp_path / "run") == 3
    assert "2 tries brought no newer checkpoint" in output


def test_progress_sets_the_count_back(start, tmp_path):
    plan = "|".join(f"checkpoint={step}+crash" for step in range(4)) + "|done"
    assert run(start(plan, "--retries=0"))[0] == 1
    assert run(start(plan, "--retries=1", workdir="other"))[0] == 0
    assert starts(tmp_path / "other") == 5


def test_retry_is_always_tried_again(start, tmp_path):
    assert run(start("retry|retry|retry|done", "--retries=0"))[0] == 0
    assert starts(tmp_path / "run") == 4


def test_the_others_are_stopped_when_one_crashes(start, tmp_path):
    plan = "hang/await=hanging+await=waiting+signal=9/wait|done"
    status, output = run(start(plan, "--processes=3", "--devices=1"))
    assert status == 0
    assert "process 1 ended by signal SIGKILL" in output
    assert "SIGTERM goes to processes 0, 2" in output
    assert "process 0 did not end in 1 s: killed" in output
    assert "process 2 ended by status 75" in output
    assert [starts(tmp_path / "run", process) for process in range(3)] == [2, 2, 2]
    assert "saved" in log(tmp_path / "run", 2)
    assert "saved" not in output  # the others' output is in their logs alone


def test_processes_are_told_where_they_are(start, tmp_path):
    plan = "environment=XLA_FLAGS+environment=JAX_PLATFORMS+done"
    status, _ = run(start(plan, "--processes=2", "--devices=3", "--config.seed=7"))
    assert status == 0
    found = [re.search(r"--coordinator=(\S+) --processes=2 --process=(\d)", text) for text in
             (log(tmp_path / "run", 0), log(tmp_path / "run", 1))]  # fmt: skip
    assert found[0][1] == found[1][1]
    assert [match[2] for match in found] == ["0", "1"]
    assert re.fullmatch(r"127\.0\.0\.1:\d+", found[0][1])
    text = log(tmp_path / "run", 1)
    assert "--config.seed=7" in text
    assert "--xla_force_host_platform_device_count=3" in text
    assert "JAX_PLATFORMS=cpu" in text


def test_gpus_are_shared_out(start, tmp_path):
    plan = "environment=CUDA_VISIBLE_DEVICES+done"
    assert run(start(plan, "--processes=2", "--gpus=4,5,6,7"))[0] == 0
    assert "CUDA_VISIBLE_DEVICES=4,5" in log(tmp_path / "run", 0)
    assert "CUDA_VISIBLE_DEVICES=6,7" in log(tmp_path / "run", 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_ends_the_run(start, tmp_path, number):
    launcher = start("wait|done", "--processes=2", "--devices=1")
    wait_for(lambda: all("waiting" in log(tmp_path / "run", p) for p in range(2)))
    launcher.send_signal(number)
    status, output = run(launcher)
    assert status == 75
    assert all("saved" in log(tmp_path / "run", process) for process in range(2))
    assert starts(tmp_path / "run") == 1
    assert "start again" not in output


def test_a_second_signal_kills(start, tmp_path):
    launcher = start("hang")
    wait_for(lambda: "hanging" in log(tmp_path / "run"))
    launcher.send_signal(signal.SIGTERM)
    wait_for(lambda: "once more kills" in launcher.output.read_text())
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGTERM)
    assert run(launcher)[0] == 128 + signal.SIGKILL


def test_a_signal_while_it_waits_ends_the_run(start, tmp_path):
    launcher = start("retry|done", "--delay=100")
    wait_for(lambda: "all start again in 100 s" in launcher.output.read_text())
    launcher.send_signal(signal.SIGTERM)
    assert run(launcher)[0] == 75
    assert starts(tmp_path / "run") == 1


@pytest.mark.parametrize("action", ["wait", "hang"])
def test_a_killed_supervisor_leaves_nothing(start, tmp_path, action):
    launcher = start(f"child+{action}", "--processes=2", "--devices=1")
    word = {"wait": "waiting\n", "hang": "hanging\n"}[action]
    wait_for(lambda: all(word in log(tmp_path / "run", process) for process in range(2)))
    running = pids(tmp_path)
    assert len(running) == 4
    assert all(map(alive, running))
    launcher.kill()
    wait_for(lambda: not any(map(alive, running)))


def test_children_of_a_crashed_process_are_ended(start, tmp_path):
    assert run(start("child+signal=9|done"))[0] == 0
    child = int((tmp_path / "run" / "child").read_text())
    assert not alive(child)


def test_a_sweep_runs_one_after_the_other(start, tmp_path):
    status, output = run(start("done", "--sweep", "config.seed=0,1"))
    assert status == 0
    folders = [tmp_path / "run" / f"seed={seed}" for seed in (0, 1)]
    assert [starts(folder) for folder in folders] == [1, 1]
    assert f"--workdir={folders[1]} --config.seed=1" in log(folders[1])
    assert "launch: seed=1: status 0 (done)" in output


def test_a_parallel_sweep_goes_on_past_a_job_that_failed(start, tmp_path):
    launcher = start("failed", "--sweep", "config.seed=0,1,2", "--parallel=2")
    status, output = run(launcher)
    assert status == 3
    assert [starts(tmp_path / "run" / f"seed={seed}") for seed in range(3)] == [1, 1, 1]
    assert output.count("status 3 (failed)") >= 3
