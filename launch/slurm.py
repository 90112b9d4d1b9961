"""Runs under SLURM: one batch job, or a job array for a sweep."""

import argparse
import os
import re
import shlex
import subprocess
from collections.abc import Sequence

from launch.job import ROOT, Job, logs, resource_name
from training.components import ConfigError

# The shell that runs on the first node. What it has to get right:
# - `--signal` without 'B:' reaches the steps, thus main.py, and not this shell.
# - `srun --kill-on-bad-exit` would kill a process that is still saving as soon as another has saved
#   and ended with RETRY, and end with 137. `--wait` gives the others time; those that hang in a
#   collective are ended after it.
# - `scancel` ends this shell, too, so that a cancelled job is not queued again.
# - srun takes --cpus-per-task no longer from sbatch (since SLURM 22.05).
# - A task of an array is requeued under its own name: the last one's SLURM_JOB_ID is the array's.
SCRIPT = """\
#!/bin/bash
{directives}

case "${{SLURM_ARRAY_TASK_ID:-0}}" in
{cases}
esac
job=$SLURM_JOB_ID
[ -z "${{SLURM_ARRAY_JOB_ID:-}}" ] || job=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
mkdir -p "$logs"
attempts() {{ (cd {root} && {python} -m launch.attempts "$@"); }}
file=$logs/attempts-$job.json

echo "--- start $((${{SLURM_RESTART_COUNT:-0}} + 1)) of job $job on $SLURM_JOB_NODELIST, $(date)"
echo "--- output of the processes: $logs/process-*.log"
attempts begin "$file" "$workdir"
srun {srun} --output="$logs/process-%t.log" --open-mode=append \\
  "${{command[@]}}"
status=$?
if attempts end "$file" "$status" --retries={retries}; then
  scontrol requeue "$job" && exit 0
  echo "launch: SLURM refused to requeue job $job"
fi
exit "$status"
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this launcher alone."""
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=0, help="of each node, one process each")
    parser.add_argument("--tasks-per-node", type=int, help="processes; default: --gpus, or 1")
    parser.add_argument("--cpus-per-task", type=int)
    parser.add_argument("--time", help="limit of one start, as of sbatch: minutes or 1-12:00:00")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--qos")
    parser.add_argument("--name", help="of the job; default: the work directory's")
    parser.add_argument(
        "--sbatch", action="append", default=[], help="any option of sbatch: --sbatch=--mem=64G"
    )
    parser.add_argument(
        "--save-seconds", type=int, default=120, help="to save in, before the time limit"
    )
    parser.add_argument(
        "--wait", type=int, default=60, help="seconds from the first end to others'"
    )
    parser.add_argument("--retries", type=int, default=10, help="starts without a newer checkpoint")
    parser.add_argument("--parallel", type=int, help="jobs of a sweep at a time; default: all")


def check_options(options: argparse.Namespace) -> None:
    """Refuses what sbatch would accept to a bad end."""
    for name in ("nodes", "tasks_per_node", "cpus_per_task", "save_seconds", "wait", "parallel"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')}={value}: must be 1 or more")
    for name in ("gpus", "retries"):
        if getattr(options, name) < 0:
            raise ConfigError(f"--{name}={getattr(options, name)}: must be 0 or more")
    if options.gpus and options.tasks_per_node not in (None, 1, options.gpus):
        raise ConfigError(
            f"--tasks-per-node={options.tasks_per_node}: must be --gpus={options.gpus} (a process "
            "for each GPU) or 1 (one process with all of them)"
        )
    for option in options.sbatch:
        if not re.match(r"--?\w", option) or "\n" in option:
            raise ConfigError(f"--sbatch={option}: must be an option, such as --sbatch=--mem=64G")


def script(jobs: Sequence[Job], options: argparse.Namespace) -> str:
    """The batch script of a job, or of the job array of a sweep."""
    root = logs(jobs[0].root)
    tasks = options.tasks_per_node or options.gpus or 1
    directives = {
        "job-name": resource_name(options.name or os.path.basename(jobs[0].root), 60),
        "nodes": options.nodes,
        "ntasks-per-node": tasks,
        "cpus-per-task": options.cpus_per_task,
        "gpus-per-node": options.gpus or None,
        "time": options.time,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "signal": f"TERM@{options.save_seconds}",
        "open-mode": "append",
        "chdir": os.getcwd(),
    }
    output = "slurm-%j.log"
    if len(jobs) > 1:
        at_a_time = f"%{options.parallel}" if options.parallel else ""
        directives["array"] = f"0-{len(jobs) - 1}{at_a_time}"
        output = "slurm-%A_%a.log"
    lines = ["#SBATCH --requeue"]
    lines += [
        f"#SBATCH --{k}={shlex.quote(str(v))}" for k, v in directives.items() if v is not None
    ]
    lines += [f"#SBATCH --output={shlex.quote(str(root).replace('%', '%%') + '/' + output)}"]
    lines += [f"#SBATCH {option}" for option in options.sbatch]
    srun = ["--kill-on-bad-exit=0", f"--wait={options.wait}"]
    if options.cpus_per_task:
        srun.append(f"--cpus-per-task={options.cpus_per_task}")
    if options.gpus:
        # Each process sees all GPUs of its node and takes its own: JAX counts them that way.
        srun.append("--gpu-bind=none")
    return SCRIPT.format(
        directives="\n".join(lines),
        cases="\n".join(_case(index, job, options) for index, job in enumerate(jobs)),
        root=shlex.quote(str(ROOT)),
        python=shlex.quote(jobs[0].python),
        srun=" ".join(srun),
        retries=options.retries,
    )


def describe(jobs: Sequence[Job], options: argparse.Namespace) -> str:
    """What would be given to sbatch."""
    return script(jobs, options)


def run(jobs: Sequence[Job], options: argparse.Namespace) -> int:
    """Submits, and says as what."""
    folder = logs(jobs[0].root)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "job.sbatch"
    file.write_text(script(jobs, options))
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", str(file)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise ConfigError(
            "sbatch is not on this host; start this where jobs are submitted"
        ) from None
    if done.returncode:
        raise ConfigError(f"sbatch refused {file}: {done.stderr.strip()}")
    number = done.stdout.strip().partition(";")[0]
    what = f"job {number}" if len(jobs) == 1 else f"job array {number} of {len(jobs)} jobs"
    print(f"launch: {what}; logs in {folder}; scancel {number} ends it")
    return 0


def _case(index: int, job: Job, options: argparse.Namespace) -> str:
    env = dict(job.env)
    if options.gpus and options.tasks_per_node == 1:
        # If not told otherwise a process under SLURM takes the one GPU of its number on the node.
        env.setdefault("JAX_LOCAL_DEVICE_IDS", ",".join(map(str, range(options.gpus))))
    quoted = shlex.quote
    exports = [f"export {name}={quoted(value)}" for name, value in env.items()]
    lines = [
        f"workdir={quoted(job.workdir)}",
        f"logs={quoted(str(logs(job.workdir)))}",
        *exports,
        f"command=({shlex.join(job.argv())})",
    ]
    return f"  {index})\n" + "".join(f"    {line}\n" for line in lines) + "    ;;"
