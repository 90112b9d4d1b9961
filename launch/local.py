"""Runs on this host: one process or several, watched, and started again when they end badly."""

import argparse
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.attempts import Attempts
from launch.attempts import describe as describe_status
from launch.job import Job, logs, shell
from launch.supervisor import Command, Supervisor
from training.components import ConfigError

PAUSE = 0.05


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this launcher alone."""
    parser.add_argument("--processes", type=int, default=1, help="processes on this host")
    devices = parser.add_mutually_exclusive_group()
    devices.add_argument("--devices", type=int, help="CPU devices of each process")
    devices.add_argument("--gpus", help="0,1,2,3: shared out evenly among the processes")
    parser.add_argument(
        "--coordinator",
        default=None,
        choices=("auto", "none"),
        help="auto: this is one of the hosts of a cluster, which main.py knows by itself",
    )
    parser.add_argument("--retries", type=int, default=10, help="starts without a newer checkpoint")
    parser.add_argument("--parallel", type=int, default=1, help="jobs of a sweep at a time")
    parser.add_argument("--grace", type=float, default=15.0, help="seconds from SIGTERM to SIGKILL")
    parser.add_argument("--delay", type=float, default=5.0, help="seconds to the first new start")


def check_options(options: argparse.Namespace) -> None:
    """Refuses options that do not fit each other, before anything starts."""
    for name in ("processes", "parallel"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name}={getattr(options, name)}: must be 1 or more")
    if options.retries < 0:
        raise ConfigError(f"--retries={options.retries}: must be 0 or more")
    if options.devices is not None and options.devices < 1:
        raise ConfigError(f"--devices={options.devices}: must be 1 or more")
    several = options.processes > 1
    if options.gpus is not None:
        gpus = options.gpus.split(",")
        if "" in gpus or len(set(gpus)) < len(gpus) or len(gpus) % options.processes:
            raise ConfigError(
                f"--gpus={options.gpus}: must be numbers of GPUs, each once, and their count a "
                f"multiple of --processes={options.processes}"
            )
    elif several and options.devices is None:
        raise ConfigError(
            f"--processes={options.processes}: say what each of them has, --devices=4 (on the CPU) "
            "or --gpus=0,1,2,3 (shared out)"
        )
    if several and options.coordinator:
        raise ConfigError(
            f"--coordinator={options.coordinator}: must be left out with several processes, which "
            "find each other on this host"
        )


def commands(job: Job, options: argparse.Namespace) -> list[Command]:
    """The processes of one start, which meet at a port that is free now."""
    count = options.processes
    place = {"coordinator": options.coordinator or "none"}
    if count > 1:
        place = {"coordinator": f"127.0.0.1:{free_port()}", "processes": count}
    made = []
    for index in range(count):
        env = dict(job.env)
        if options.devices is not None:
            flags = f"--xla_force_host_platform_device_count={options.devices}"
            before = env.get("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
            env |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{before} {flags}".strip()}
        elif options.gpus is not None:
            gpus = options.gpus.split(",")
            share = len(gpus) // count
            env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[index * share : (index + 1) * share])
        one = place | ({"process": index} if count > 1 else {})
        made.append(Command(job.argv(**one), env))
    return made


def free_port() -> int:
    """A port of this host that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def describe(jobs: Sequence[Job], options: argparse.Namespace) -> str:
    """What would be started, as shell commands."""
    lines = []
    for job in jobs:
        for index, command in enumerate(commands(job, options)):
            lines += [f"# process {index}, log {_folder(job, options) / f'process-{index}.log'}"]
            lines += [shell(command.argv, command.env)]
    return "\n".join(lines)


def run(jobs: Sequence[Job], options: argparse.Namespace) -> int:
    """Runs the jobs, `--parallel` of them at a time; the status of the first that ended badly."""
    waiting, running, statuses = list(jobs), {}, {}
    signals: list[int] = []
    passed_on = 0
    before = {
        number: signal.signal(number, lambda number, _: signals.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        while running or (waiting and not signals):
            while waiting and len(running) < options.parallel and not signals:
                job = waiting.pop(0)
                running[job] = _supervise(job, options, show=options.parallel == 1)
            if len(signals) > passed_on:
                for supervisor in running.values():
                    # The first is passed on so that the run saves, the second kills.
                    supervisor.kill() if passed_on else supervisor.terminate()
                passed_on += 1
            for job, supervisor in list(running.items()):
                status = supervisor.poll()
                if status is not None:
                    del running[job]
                    statuses[job] = status if status >= 0 else 128 - status
            time.sleep(PAUSE)
    finally:
        for supervisor in running.values():
            supervisor.kill()
        for number, handler in before.items():
            signal.signal(number, handler)
    if len(jobs) > 1:
        for job in jobs:
            ended = describe_status(statuses[job]) if job in statuses else "not started"
            _say(job.name)(ended)
    return next((status for status in statuses.values() if status), 0)


def _supervise(job: Job, options: argparse.Namespace, show: bool) -> Supervisor:
    return Supervisor(
        lambda: commands(job, options),
        Attempts(job.workdir, options.retries),
        _folder(job, options),
        say=_say(job.name),
        show=show,
        grace=options.grace,
        delay=options.delay,
    )


def _folder(job: Job, options: argparse.Namespace) -> Path:
    """Of the logs; each host of a cluster has its own, as their work directory may be one."""
    folder = logs(job.workdir)
    return folder / socket.gethostname() if options.coordinator == "auto" else folder


def _say(name: str) -> Callable[[str], None]:
    prefix = f"launch: {name}: " if name else "launch: "

    def say(message: str) -> None:
        # A full disk under the output is no reason to stop a run.
        with contextlib.suppress(OSError):
            print(prefix + message, flush=True)

    return say
