"""Harms training runs in every way that a cluster has, and checks that nothing is lost.

    python -m tests.faults.campaign --root=/tmp/faults --output=docs/results/faults.md

Each fault hits a run that `python -m launch local` keeps going. After it the run has to start again
by itself and write a checkpoint whose arrays, all of them, have the bits of the same step of a run
that nothing happened to; at its end its metrics have to be those of that run, byte for byte.
Faults on full disks need root, for a file system of their own.
"""

import argparse
import contextlib
import dataclasses
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults import data
from tests.faults.run import EVERY, Run, read_of, wait

PATIENCE = 240.0


@dataclasses.dataclass
class Row:
    """One injected fault and what came of it."""

    place: str
    fault: str
    step: int
    seconds: float
    same: bool
    note: str = ""


def _later(run: Run, chance: random.Random, least: int = 1) -> int:
    """Waits for a step a little ahead."""
    target = run.step() + least + chance.randrange(4)
    wait(lambda: run.step() >= target, PATIENCE, f"the run does not come to step {target}")
    return run.step()


def kill_in_step(run: Run, chance: random.Random, *which: int) -> str:
    _later(run, chance)
    time.sleep(chance.uniform(0, 0.03))
    run.signal(signal.SIGKILL, *which)
    return ""


def kill_in_save(run: Run, chance: random.Random, *which: int) -> str:
    _later(run, chance)
    wait(run.saving, PATIENCE, "no checkpoint is written", every=0.0005)
    run.signal(signal.SIGKILL, *which)
    return "" if run.saving() else "the save ended first"


def kill_in_restore(run: Run, chance: random.Random, *which: int) -> str:
    _later(run, chance)
    wait(lambda: bool(run.checkpoints()), PATIENCE, "there is no checkpoint")
    # Stopped first, so that no other checkpoint comes in between.
    run.signal(signal.SIGSTOP)
    before, newest = run.step(), run.workdir / "checkpoints" / str(run.checkpoints()[-1])
    run.kill()
    if not read_of(newest / "params", PATIENCE):
        raise TimeoutError("no restore")
    time.sleep(chance.uniform(0, 0.2))
    run.signal(signal.SIGKILL, *which)
    return "" if run.step() == before else "the restore ended first"


def terminate(run: Run, chance: random.Random, *which: int) -> str:
    _later(run, chance)
    old = set(run.pids().values())
    run.signal(signal.SIGTERM, *which)
    wait(lambda: old.isdisjoint(run.pids().values()), PATIENCE, "SIGTERM does not end the run")
    return ""


def terminate_in_start(run: Run, chance: random.Random, *which: int) -> str:
    _later(run, chance)
    run.kill()
    wait(lambda: not run.pids(), PATIENCE, "killed processes are still there")
    wait(lambda: len(run.pids()) == run.processes, PATIENCE, "the run does not start again")
    time.sleep(chance.uniform(0.2, 6.0))
    run.signal(signal.SIGTERM, *which)
    return ""


def damage(harm: Callable[[Path], None]) -> Callable[..., str]:
    """Kills the run and harms its newest checkpoint before it starts again."""

    def inject(run: Run, chance: random.Random) -> str:
        _later(run, chance, least=2 * EVERY)
        # Stopped first, so that no other checkpoint comes in between.
        run.signal(signal.SIGSTOP)
        newest = run.workdir / "checkpoints" / str(run.checkpoints()[-1])
        harm(newest)
        run.kill()
        aside = newest.with_name(f"{newest.name}.damaged")
        wait(aside.exists, PATIENCE, "the damaged checkpoint is not set aside")
        shutil.rmtree(aside)
        return ""

    return inject


def _largest(directory: Path) -> Path:
    files = (path for path in directory.rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def truncate(part: str) -> Callable[[Path], None]:
    """Cuts the largest file of an item in half."""

    def harm(checkpoint: Path) -> None:
        path = _largest(checkpoint / part)
        os.truncate(path, path.stat().st_size // 2)

    return harm


def flip(checkpoint: Path) -> None:
    """Changes one bit of the parameters."""
    path = _largest(checkpoint / "params")
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def remove(part: str) -> Callable[[Path], None]:
    return lambda checkpoint: shutil.rmtree(checkpoint / part)


def fill_disk(run: Run, chance: random.Random) -> str:
    _later(run, chance)
    seen, old = run.log().count("trying again"), set(run.pids().values())

    def told() -> bool:
        return run.log().count("trying again") > seen or old.isdisjoint(run.pids().values())

    with (run.workdir / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(1 << 12))
    try:
        wait(told, PATIENCE, "a full disk is not told of")
        time.sleep(chance.uniform(0, 3))
    finally:
        (run.workdir / "filler").unlink()
    return "" if old == set(run.pids().values()) else "ended by the watchdog and started again"


def fill_disk_and_kill(run: Run, chance: random.Random) -> str:
    _later(run, chance)
    with (run.workdir / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(1 << 12))
    try:
        run.kill()
        time.sleep(chance.uniform(8, 20))
    finally:
        (run.workdir / "filler").unlink()
    return ""


def stall_worker(run: Run, chance: random.Random) -> str:
    _later(run, chance)
    wait(lambda: bool(run.data_workers()), PATIENCE, "there are no data workers")
    old = set(run.pids().values())
    for pid in run.data_workers():
        os.kill(pid, signal.SIGSTOP)
    wait(lambda: old.isdisjoint(run.pids().values()), PATIENCE, "a stalled worker is not noticed")
    told = "made no progress" in run.log()
    return "" if told else "no message of the watchdog"


def nan_batch(run: Run, chance: random.Random, *which: int) -> str:
    before = run.bad_steps()
    wait(lambda: run.bad_steps() > before, PATIENCE, "no step is skipped", every=0.0005)
    run.signal(signal.SIGKILL, *which)
    return ""


def freeze(run: Run, chance: random.Random, *which: int) -> str:
    """A host that hangs: it neither works nor ends."""
    _later(run, chance)
    old = set(run.pids().values())
    run.signal(signal.SIGSTOP, *which)
    wait(lambda: old.isdisjoint(run.pids().values()), PATIENCE, "a hung host is not noticed")
    return ""


def one(count: int) -> list[tuple[str, Callable[..., str], tuple]]:
    """Faults on a run of one process."""
    plan = [("kill -9 in a step", kill_in_step, ())] * (8 * count)
    plan += [("kill -9 in an asynchronous save", kill_in_save, ())] * (8 * count)
    plan += [("kill -9 in a restore", kill_in_restore, ())] * (6 * count)
    plan += [("SIGTERM", terminate, ())] * (5 * count)
    plan += [("SIGTERM during start-up", terminate_in_start, ())] * (3 * count)
    plan += [("NaN batch, then kill -9", nan_batch, ())] * (3 * count)
    for part in ("params", "ema.default", "training", "data", "meta"):
        plan += [(f"truncated file of {part}", damage(truncate(part)), ())] * count
    plan += [("one bit of the parameters flipped", damage(flip), ())] * (2 * count)
    plan += [("averages missing", damage(remove("ema.default")), ())] * count
    return plan


def two(count: int) -> list[tuple[str, Callable[..., str], tuple]]:
    """Faults on a run of two processes."""
    plan = [("kill -9 of the coordinator in a step", kill_in_step, (0,))] * (2 * count)
    plan += [("kill -9 of a worker in a step", kill_in_step, (1,))] * (2 * count)
    plan += [("kill -9 of all in a step", kill_in_step, ())] * (2 * count)
    plan += [("kill -9 of a worker in a save", kill_in_save, (1,))] * (2 * count)
    plan += [("kill -9 of the coordinator in a save", kill_in_save, (0,))] * count
    plan += [("kill -9 of a worker in a restore", kill_in_restore, (1,))] * (2 * count)
    plan += [("SIGTERM to one of them", terminate, (1,))] * (2 * count)
    plan += [("SIGTERM to all", terminate, ())] * count
    plan += [("a host that hangs", freeze, (1,))] * count
    plan += [("truncated file of params", damage(truncate("params")), ())] * count
    plan += [("truncated file of training", damage(truncate("training")), ())] * count
    return plan


def harm(run: Run, unbroken: Run, place: str, plan: list, chance: random.Random) -> list[Row]:
    """Injects the faults one after the other, and finishes the run."""
    rows = []
    run.start()
    for fault, inject, arguments in plan:
        wait(lambda: run.step() > 0, PATIENCE, "the run does not start")
        note = inject(run, chance, *arguments)
        began, step = time.monotonic(), max(run.checkpoints(), default=0)
        same, at = _next_equal(run, unbroken, step)
        row = Row(place, fault, at, time.monotonic() - began, same, note)
        rows.append(row)
        print(f"{len(rows):3d}/{len(plan)} {row}", flush=True)
    status = run.finish(PATIENCE * 4)
    ended = status == 0 and run.checkpoints()[-1] == run.steps
    last = ended and run.bits(run.steps) == unbroken.bits(run.steps)
    lines = [(each.workdir / "metrics.jsonl").read_bytes() for each in (run, unbroken)]
    print(f"{place}: exit {status}, last checkpoint equal: {last}, metrics equal: "
          f"{lines[0] == lines[1]}", flush=True)  # fmt: skip
    rows.append(Row(place, "the end of the run", run.steps, 0.0, last and lines[0] == lines[1]))
    return rows


def _next_equal(run: Run, unbroken: Run, step: int) -> tuple[bool, int]:
    """Whether the next checkpoint has the bits of the unbroken run, and its step."""
    found: list[tuple[int, dict]] = []

    def newer() -> bool:
        for there in run.checkpoints():
            if there > step and there % EVERY == 0 and (bits := run.bits(there)):
                found.append((there, bits))
                return True
        return False

    wait(newer, PATIENCE, f"no checkpoint after step {step}")
    at, bits = found[0]
    return bits == unbroken.bits(at), at


def table(rows: list[Row]) -> list[str]:
    """One line for each place and fault."""
    lines = ["| run | fault | injected | went on, same bits | median s to go on |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for place, fault in dict.fromkeys((row.place, row.fault) for row in rows):
        these = [row for row in rows if (row.place, row.fault) == (place, fault)]
        good = sum(row.same for row in these)
        seconds = statistics.median(row.seconds for row in these)
        shown = f"{seconds:.1f}" if seconds else ""
        lines.append(f"| {place} | {fault} | {len(these)} | {good} | {shown} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, required=True, help="an empty directory")
    parser.add_argument("--output", type=Path, help="a Markdown file for the table")
    parser.add_argument("--only", default="one,disk,worker,two", help="which runs")
    parser.add_argument("--faults", default="", help="only those with this in their name")
    parser.add_argument("--count", type=int, default=1, help="times the faults of the plan")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.root.mkdir(parents=True, exist_ok=True)
    source = data.write(options.root / "data")
    chance, rows = random.Random(options.seed), []
    runs: list[Run] = []

    def pair(name: str, steps: int, processes: int, *overrides: str, root=options.root):
        keep = f"--config.checkpoint.keep_every={EVERY}"
        whole = Run(options.root / f"{name}-unbroken", source, steps, processes, keep)
        runs.append(whole)
        whole.start()
        if whole.finish(PATIENCE * 4):
            sys.exit(f"the unbroken run failed, see {whole.workdir}.log")
        runs.append(Run(root / name, source, steps, processes, *overrides))
        return runs[-1], whole

    try:
        if "one" in options.only:
            plan = [each for each in one(options.count) if options.faults in each[0]]
            chance.shuffle(plan)
            run, whole = pair("one", 40 * len(plan), 1)
            rows += harm(run, whole, "1 process", plan, chance)
        if "worker" in options.only:
            plan = [("stalled data worker", stall_worker, ())] * (4 * options.count)
            flags = "--config.data.workers=1", "--config.train.stall_seconds=8.0"
            run, whole = pair("worker", 40 * len(plan), 1, *flags)
            rows += harm(run, whole, "1 process, 1 data worker", plan, chance)
        if "disk" in options.only:
            with small_disk(options.root / "disk", megabytes=64) as disk:
                plan = [("full disk for a while", fill_disk, ())] * (5 * options.count)
                plan += [("full disk, and kill -9", fill_disk_and_kill, ())] * (2 * options.count)
                # The launcher's logs are elsewhere, so that all of them can be read.
                (options.root / "disk-logs").mkdir()
                (disk / "run").mkdir()
                (disk / "run" / "logs").symlink_to(options.root / "disk-logs")
                flag = "--config.train.stall_seconds=20.0"
                run, whole = pair("run", 150 * len(plan), 1, flag, root=disk)
                rows += harm(run, whole, "1 process, disk of 64 MB", plan, chance)
        if "two" in options.only:
            plan = [each for each in two(options.count) if options.faults in each[0]]
            chance.shuffle(plan)
            run, whole = pair("two", 40 * len(plan), 2, "--config.train.stall_seconds=20.0")
            rows += harm(run, whole, "2 processes", plan, chance)
    finally:
        for run in runs:
            run.stop()
    lines = table(rows)
    print("\n".join(lines))
    if options.output:
        head = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        options.output.write_text("\n".join([head, "", *lines]) + "\n")
    return 0 if all(row.same for row in rows) else 1


@contextlib.contextmanager
def small_disk(path: Path, megabytes: int):
    """A file system that is soon full; needs root."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


if __name__ == "__main__":
    sys.exit(main())
