"""The batch script: with commands of SLURM that stand in for them, and in a real SLURM."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from launch.__main__ import main
from tests.launch.programs import DUMMY, MAIN, ROOT, TINY, fake, launcher

CLUSTER = Path(__file__).parent / "slurm.sh"


def dry_run(capsys, *arguments) -> str:
    given = ["slurm", "--config=configs/digits.py", "--workdir=/runs/a", "--dry-run", *arguments]
    assert main(given) == 0
    return capsys.readouterr().out


def directives(script: str) -> dict[str, str]:
    return dict(
        re.fullmatch(r"#SBATCH --([\w-]+)=?(.*)", line).groups()
        for line in script.splitlines()
        if line.startswith("#SBATCH")
    )


def test_options_become_directives(capsys):
    script = dry_run(
        capsys,
        *("--nodes=4", "--gpus=8", "--cpus-per-task=12", "--time=1-00:00:00", "--partition=p"),
        *("--account=a", "--qos=high", "--sbatch=--constraint=h100", "--save-seconds=300"),
    )
    found = directives(script)
    assert found == {
        "requeue": "",
        "job-name": "a",
        "nodes": "4",
        "ntasks-per-node": "8",
        "gpus-per-node": "8",
        "cpus-per-task": "12",
        "time": "1-00:00:00",
        "partition": "p",
        "account": "a",
        "qos": "high",
        "signal": "TERM@300",
        "open-mode": "append",
        "chdir": os.getcwd(),
        "output": "/runs/a/logs/slurm-%j.log",
        "constraint": "h100",
    }
    assert "--cpus-per-task=12 --gpu-bind=none" in script
    assert "JAX_LOCAL_DEVICE_IDS" not in script


def test_one_process_with_all_gpus_of_its_node(capsys):
    script = dry_run(capsys, "--gpus=4", "--tasks-per-node=1")
    assert "export JAX_LOCAL_DEVICE_IDS=0,1,2,3" in script


def test_a_sweep_is_an_array(capsys):
    script = dry_run(capsys, "--sweep", "config.seed=0,1,2", "--parallel=2")
    found = directives(script)
    assert found["array"] == "0-2%2"
    assert found["output"] == "/runs/a/logs/slurm-%A_%a.log"
    assert re.findall(r"workdir=(\S+)\n", script) == [f"/runs/a/seed={seed}" for seed in range(3)]


@pytest.mark.parametrize(
    "option",
    ["--nodes=0", "--gpus=-1", "--sbatch=mem=1", "--tasks-per-node=0"],
)
def test_wrong_options_are_told(capsys, option):
    assert main(["slurm", "--config=configs/digits.py", "--workdir=w", option]) == 2
    assert option in capsys.readouterr().err


def test_a_component_that_is_not_there_is_not_submitted(capsys):
    wrong = "--config.sample.solver=ddmi(eta=0.0)"
    assert main(["slurm", "--config=configs/digits.py", "--workdir=w", wrong]) == 2
    assert "ddim" in capsys.readouterr().err


@pytest.fixture
def batch(tmp_path, capsys):
    """Runs the script as a node would, with an srun that ends as told and checkpoints on the way.

    Gives its status and what was asked of scontrol.
    """
    commands = fake(tmp_path / "bin", "srun", '#!/bin/sh\nmkdir -p "$STEP"\nexit $STATUS\n')
    fake(commands, "scontrol", f'#!/bin/sh\necho "$*" >>{tmp_path}/scontrol\n')
    workdir = tmp_path / "run it"
    script = dry_run(capsys, f"--workdir={workdir}", "--retries=1")
    asked = tmp_path / "scontrol"

    def run(status: int, step: int | None = None, **environment: str) -> tuple[int, str]:
        asked.unlink(missing_ok=True)
        env = os.environ | {
            "PATH": f"{commands}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "node",
            "STATUS": str(status),
            "STEP": str(workdir / "checkpoints" / str(step)) if step else str(workdir),
        }
        ended = subprocess.run(["bash", "-c", script], env=env | environment, check=False)
        return ended.returncode, asked.read_text().strip() if asked.exists() else ""

    return run


@pytest.mark.parametrize("status", [0, 2, 3])
def test_an_end_that_is_final(batch, status):
    assert batch(status) == (status, "")


def test_fruitless_starts_are_bounded(batch):
    assert batch(75) == (0, "requeue 7")
    assert batch(137) == (137, "")


def test_progress_sets_the_count_back(batch):
    assert batch(137) == (0, "requeue 7")
    assert batch(75, step=10) == (0, "requeue 7")
    assert batch(75, step=10) == (75, "")


def test_a_task_of_an_array_is_requeued_alone(batch):
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}
    assert batch(75, **array) == (0, "requeue 7_0")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A real SLURM of one host; its SLURM_CONF is set."""
    if os.geteuid():
        pytest.skip("a SLURM of this host needs root")
    if not (
        shutil.which("munged", path="/usr/sbin") and shutil.which("slurmctld", path="/usr/sbin")
    ):
        pytest.skip(f"SLURM is not installed; {CLUSTER} install does it")
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([CLUSTER, "start", folder], check=True, timeout=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        yield folder
        subprocess.run(["scancel", "--user=root"], check=False, timeout=30)
        with contextlib.suppress(AssertionError):
            wait_for(lambda: not squeue(), 20)
    subprocess.run([CLUSTER, "stop", folder], check=True, timeout=60)


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def squeue() -> str:
    command = ["squeue", "--noheader", "--format=%i %T"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def submit(workdir: Path, *arguments) -> str:
    command = launcher("slurm", f"--workdir={workdir}", "--tasks-per-node=2", *arguments)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return re.search(r"job (?:array )?(\d+)", done.stdout)[1]


def text(folder: Path, pattern: str) -> str:
    return "".join(file.read_text() for file in sorted((folder / "logs").glob(pattern)))


def state(job: str) -> str:
    command = ["scontrol", "show", "job", job]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.search(r"JobState=(\w+)", shown)[1]


def dummy(plan: str) -> list[str]:
    return ["--config=configs/digits.py", f"--program={DUMMY}", f"--env=DUMMY={plan}"]


@pytest.mark.slow
def test_two_tasks_train_together(cluster, tmp_path):
    workdir = tmp_path / "run"
    one_device = "--env=XLA_FLAGS=--xla_force_host_platform_device_count=1"
    job = submit(workdir, *TINY, "--env=JAX_PLATFORMS=cpu", one_device, f"--program={MAIN}")
    wait_for(lambda: not squeue(), 240)
    told = text(workdir, "*.log")
    assert state(job) == "COMPLETED", told
    assert "process 1 of 2 on " in text(workdir, "process-1.log")
    assert ": 1 of 2 x cpu, " in text(workdir, "process-1.log")
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()]
    assert steps == [1, 2, 3, 4]
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "4"]


@pytest.mark.slow
def test_a_job_that_saved_is_queued_again_and_completes(cluster, tmp_path):
    workdir = tmp_path / "run"
    job = submit(workdir, *dummy("wait|done"))
    wait_for(lambda: text(workdir, "process-*.log").count("waiting") == 2)
    subprocess.run(["scancel", "--signal=TERM", job], check=True)
    wait_for(lambda: not squeue())
    assert state(job) == "COMPLETED"
    assert text(workdir, "process-*.log").count("saved") == 2
    told = text(workdir, "slurm-*.log")
    assert f"--- start 2 of job {job}" in told
    assert "status 75" in told


@pytest.mark.slow
def test_the_time_limit_is_announced_and_outlived(cluster, tmp_path):
    workdir = tmp_path / "run"
    job = submit(workdir, *dummy("wait|done"), "--time=1", "--save-seconds=50")
    wait_for(lambda: not squeue(), 120)
    assert state(job) == "COMPLETED"
    assert text(workdir, "process-*.log").count("saved") == 2
    assert f"--- start 2 of job {job}" in text(workdir, "slurm-*.log")


@pytest.mark.slow
def test_a_process_that_still_saves_is_waited_for(cluster, tmp_path):
    workdir = tmp_path / "run"
    job = submit(workdir, *dummy("sleep=5+checkpoint=1+retry/retry|done"))
    wait_for(lambda: not squeue())
    assert state(job) == "COMPLETED"
    assert (workdir / "checkpoints" / "1").exists()
    assert "status 75" in text(workdir, "slurm-*.log")


@pytest.mark.slow
def test_a_cancelled_job_does_not_come_back(cluster, tmp_path):
    workdir = tmp_path / "run"
    job = submit(workdir, *dummy("wait"))
    wait_for(lambda: text(workdir, "process-*.log").count("waiting") == 2)
    subprocess.run(["scancel", job], check=True)
    wait_for(lambda: not squeue())
    time.sleep(5)
    assert not squeue()
    assert state(job) == "CANCELLED"


@pytest.mark.slow
def test_jobs_of_an_array_are_queued_again_one_by_one(cluster, tmp_path):
    workdir = tmp_path / "run"
    job = submit(workdir, *dummy("retry|done"), "--sweep", "config.seed=0,1")
    wait_for(lambda: not squeue())
    for seed in range(2):
        starts = workdir / f"seed={seed}" / "starts-0"
        assert len(starts.read_text().splitlines()) == 2
        assert f"--- start 2 of job {job}_{seed}" in text(workdir, f"slurm-{job}_{seed}.log")


@pytest.mark.slow
def test_a_crash_ends_those_that_hang(cluster, tmp_path):
    workdir = tmp_path / "run"
    job = submit(workdir, *dummy("hang/signal=9|done"), "--wait=2")
    wait_for(lambda: not squeue())
    assert state(job) == "COMPLETED"
    assert "signal SIGKILL" in text(workdir, "slurm-*.log")
