"""Stands in for main.py: does what DUMMY says, start by start.

DUMMY='crash|wait/hang|done': the first start crashes; in the second process 0 waits and process 1
hangs; the third is done. Actions one after the other: 'checkpoint=10+crash'.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

STATUSES = {"done": 0, "crash": 1, "mistake": 2, "failed": 3, "retry": 75}


def act(action: str, workdir: Path) -> None:
    name, _, value = action.partition("=")
    if name == "checkpoint":
        (workdir / "checkpoints" / value).mkdir(parents=True)
    elif name == "child":  # as a worker that loads data
        child = subprocess.Popen(["sleep", "1000"])
        with (workdir / "child").open("a") as file:
            file.write(f"{child.pid}\n")
    elif name == "sleep":
        time.sleep(float(value))
    elif name == "environment":
        print(f"{value}={os.environ.get(value)}")
    elif name == "wait":  # until SIGTERM, then save
        signal.signal(signal.SIGTERM, lambda *_: (print("saved"), sys.exit(75)))
        print("waiting")
        (workdir / "waiting").touch()
        time.sleep(1000)
    elif name == "regret":  # until SIGTERM, then tell of a mistake
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
        (workdir / "ready").touch()
        time.sleep(1000)
    elif name == "await":  # another process's file
        while not (workdir / value).exists():
            time.sleep(0.01)
    elif name == "hang":  # as in a collective
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("hanging")
        (workdir / "hanging").touch()
        time.sleep(1000)
    elif name == "signal":
        os.kill(os.getpid(), int(value))
    else:
        sys.exit(STATUSES[name])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--process", type=int, default=int(os.environ.get("SLURM_PROCID", 0)))
    options, rest = parser.parse_known_args()
    options.workdir.mkdir(parents=True, exist_ok=True)
    starts = options.workdir / f"starts-{options.process}"
    start = len(starts.read_text().splitlines()) if starts.exists() else 0
    with starts.open("a") as file:
        file.write(f"{os.getpid()}\n")
    print(f"start {start} of {options.process}:", *rest)
    plan = os.environ["DUMMY"].split("|")
    actions = plan[min(start, len(plan) - 1)].split("/")
    for action in actions[min(options.process, len(actions) - 1)].split("+"):
        act(action, options.workdir)


if __name__ == "__main__":
    main()
