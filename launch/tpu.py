"""Runs on Cloud TPU VMs: a queued resource for each job, made again when it is preempted.

On each VM the supervisor of `launch.local` keeps main.py going. It is detached from the connection
that starts it: this program follows the run, and starting it again follows it again.
"""

import argparse
import concurrent.futures
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from launch.attempts import Attempts
from launch.attempts import describe as describe_status
from launch.job import Job, resource_names, shell
from launch.remote import commit, git, portable
from training.components import ConfigError
from training.exit_codes import RETRY

# Software of the VMs by the beginning of the accelerator type.
RUNTIMES = {
    "v2-": "tpu-ubuntu2204-base",
    "v3-": "tpu-ubuntu2204-base",
    "v4-": "tpu-ubuntu2204-base",
    "v5litepod-": "v2-alpha-tpuv5-lite",
    "v5p-": "v2-alpha-tpuv5",
    "v6e-": "v2-alpha-tpuv6e",
}
# States of a queued resource that has no machines and gets none.
LOST = ("FAILED", "SUSPENDED")
# Tries, one after the other, to bring the code to machines that are there.
TRIES = 5
STATUS = re.compile(r"^launch-status (\d+)$")

# On each VM, in its home. Python comes by uv: that of the system may be older than 3.11.
INSTALL = """\
set -e
mkdir -p {name}
cd {name}
if [ ! -f {code}/.venv/installed ]; then
  rm -rf {code}
  {fetch}
  cd {code}
  python3 -m pip install --quiet --user uv
  ~/.local/bin/uv venv --quiet --python={version} .venv
  ~/.local/bin/uv pip install --quiet --python=.venv/bin/python -c constraints.txt \
-r requirements-tpu.txt
  touch .venv/installed
fi"""
# The lock is held for as long as the supervisor lives, and makes starting twice do nothing.
START = """\
cd {name}/{code}
exec 9>../lock
if flock --nonblock 9; then
  rm -f ../status
  setsid nohup bash -c {supervise} </dev/null >>../launch.log 2>&1 &
fi"""
SUPERVISE = "{command}; echo $? >../status.new; mv ../status.new ../status"
# Ends with the supervisor. One that was killed has left no status.
FOLLOW = """\
cd {name}
tail --lines=20 --follow=name --retry launch.log 2>/dev/null & tail=$!
while [ ! -f status ] && ! flock --nonblock lock true; do sleep {pause}; done
sleep {pause}
kill $tail
echo "launch-status $(cat status 2>/dev/null || echo {retry})\""""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this launcher alone."""
    parser.add_argument("--accelerator-type", help="v4-32, v5litepod-16, v5p-64, v6e-256 ...")
    parser.add_argument("--slices", type=int, default=1, help="of that type, as one run")
    parser.add_argument("--runtime-version", help="default: the one for the accelerator type")
    parser.add_argument("--zone", help="default: that of gcloud's configuration")
    parser.add_argument("--project", help="default: that of gcloud's configuration")
    parser.add_argument("--spot", action="store_true", help="cheaper, and preempted at any time")
    parser.add_argument("--reserved", action="store_true", help="from a reservation")
    parser.add_argument("--name", help="of the queued resource; default: the work directory's")
    parser.add_argument("--repository", help="URL to clone; default: the code is copied from here")
    parser.add_argument("--python-version", default=f"3.{sys.version_info.minor}")
    parser.add_argument("--retries", type=int, default=10, help="starts without a newer checkpoint")
    parser.add_argument("--keep", action="store_true", help="leave the machines when the run ends")
    parser.add_argument("--poll", type=float, default=30.0, help="seconds between looks")
    parser.add_argument(
        "--gcloud", action="append", default=[], help="any option of `create`: --gcloud=--network=n"
    )
    parser.add_argument(
        "--ssh", action="append", default=[], help="of ssh and scp: --ssh=--tunnel-through-iap"
    )


def check_options(options: argparse.Namespace) -> None:
    """Fills in the runtime version, refuses what is missing."""
    kind = options.accelerator_type
    if not kind:
        raise ConfigError("--accelerator-type is missing; v5litepod-16 is one")
    if options.slices < 1:
        raise ConfigError(f"--slices={options.slices}: must be 1 or more")
    if options.spot and options.reserved:
        raise ConfigError("--spot and --reserved exclude each other")
    if not options.runtime_version:
        found = [version for start, version in RUNTIMES.items() if kind.startswith(start)]
        if not found:
            raise ConfigError(
                f"--runtime-version is missing; it is known for types {', '.join(RUNTIMES)}, not "
                f"for {kind}"
            )
        options.runtime_version = found[0]


class Machines:
    """The commands for one job's queued resource, as lists of words for gcloud."""

    def __init__(self, name: str, job: Job, options: argparse.Namespace, version: str):
        """`version` is the commit to run."""
        self.name, self.options, self.version = name, options, version
        self.job = portable(job, ".venv/bin/python")
        self.archive = f"{name}-{version[:12]}.tar.gz"
        self.code = f"code-{version[:12]}"

    def create(self) -> list[str]:
        """Asks for the machines."""
        o = self.options
        nodes = [f"--node-id={self.name}"]
        if o.slices > 1:
            nodes = [f"--node-count={o.slices}", f"--node-prefix={self.name}"]
        what = [
            f"--accelerator-type={o.accelerator_type}",
            f"--runtime-version={o.runtime_version}",
        ]
        tier = ["--spot"] * o.spot + ["--reserved"] * o.reserved
        return self._command("create", self.name, *nodes, *what, *tier, *o.gcloud)

    def state(self) -> list[str]:
        """Asks how far they are."""
        return self._command("describe", self.name, "--format=value(state.state)")

    def delete(self) -> list[str]:
        """Gives them back, running or not."""
        return self._command("delete", self.name, "--force", "--quiet")

    def prepare(self) -> list[list[str]]:
        """Brings the code and installs what it needs; does nothing where that is done."""
        o = self.options
        fetch = f"mkdir {self.code}\n  tar -xzf ~/{self.archive} -C {self.code}"
        copy = [
            self._command(
                "scp", self.archive, f"{self.name}:{self.archive}", *self._everywhere(), *o.ssh
            )
        ]
        if o.repository:
            fetch = (
                f"git clone --quiet {shlex.quote(o.repository)} {self.code}\n"
                f"  git -C {self.code} checkout --quiet {self.version}"
            )
            copy = []
        script = INSTALL.format(
            name=self.name, code=self.code, fetch=fetch, version=o.python_version
        )
        return [*copy, self._ssh(script, *self._everywhere())]

    def start(self) -> list[str]:
        """Starts the supervisor on each machine, where none runs."""
        local = [self.job.python, "-m", "launch", "local", "--coordinator=auto"]
        local += [f"--retries={self.options.retries}", *self.job.arguments()]
        supervise = SUPERVISE.format(command=shell(local, dict(self.job.env)))
        script = START.format(name=self.name, code=self.code, supervise=shlex.quote(supervise))
        return self._ssh(script, *self._everywhere())

    def follow(self) -> list[str]:
        """Shows what the first machine prints, until its supervisor ends."""
        pause = min(2.0, self.options.poll)
        return self._ssh(FOLLOW.format(name=self.name, pause=pause, retry=RETRY), "--worker=0")

    def _everywhere(self) -> list[str]:
        return ["--node=all", "--worker=all"]

    def _ssh(self, script: str, *where: str) -> list[str]:
        return self._command("ssh", self.name, *where, *self.options.ssh, f"--command={script}")

    def _command(self, verb: str, *arguments: str) -> list[str]:
        place = {"zone": self.options.zone, "project": self.options.project}
        given = [f"--{name}={value}" for name, value in place.items() if value]
        return ["gcloud", "compute", "tpus", "queued-resources", verb, *arguments, *given]


class Run:
    """One job on its machines, seen through to its end."""

    def __init__(self, machines: Machines, folder: Path, leave: threading.Event):
        """`folder` holds the archive of the code; `leave` asks to stop following."""
        self._machines, self._folder, self._leave = machines, folder, leave
        self._attempts = Attempts(machines.job.workdir, machines.options.retries)
        self._now: subprocess.Popen | None = None
        self._created = False
        self._failures = 0

    def run(self) -> int:
        """Until the run ends; made again when its machines are lost."""
        while not self._leave.is_set():
            state = self._state()
            if state is None:
                if not self._create():
                    return 1
            elif state in LOST:
                self._say(f"is {state}: deleted and asked for again")
                self._call(self._machines.delete())
                self._attempts.again(RETRY)
                self._leave.wait(self._attempts.delay(self._machines.options.poll))
                continue
            elif state == "ACTIVE" and (status := self._follow()) not in (None, RETRY):
                self._say(f"the run ended by {describe_status(status)}")
                if not self._machines.options.keep:
                    self._call(self._machines.delete())
                return status
            elif self._failures == TRIES:
                self._say("its machines cannot be made ready; they are kept")
                return 1
            elif state != "ACTIVE":
                self._say(f"is {state}")
            self._leave.wait(self._machines.options.poll)
        self._say("the run goes on; the same command follows it again, and this ends it:")
        self._say(shlex.join(self._machines.delete()))
        return RETRY

    def interrupt(self) -> None:
        """Ends the command that runs now, and the ssh that it has started."""
        if self._now and self._now.poll() is None:
            os.killpg(self._now.pid, signal.SIGTERM)

    def _state(self) -> str | None:
        """The state of the queued resource; None where there is none, '?' where nobody answers."""
        status, output = self._call(self._machines.state(), quiet=True)
        if not status:
            return output.strip() or "?"
        if "NOT_FOUND" in output or "not found" in output:
            return None
        self._say(f"gcloud describe failed: {output.strip()}")
        return "?"

    def _create(self) -> bool:
        status, output = self._call(self._machines.create())
        if status and not self._created:
            self._say(f"gcloud create failed: {output.strip()}")
            return False
        self._created = True
        return True

    def _follow(self) -> int | None:
        """The supervisor's status, or None where the connection or the machines were lost."""
        for command in [*self._machines.prepare(), self._machines.start()]:
            status, output = self._call(command)
            if status:
                self._say(
                    f"gcloud {command[4]} failed with status {status}: {output.strip()[-2000:]}"
                )
                self._failures += 1
                return None
        self._failures = 0
        self._attempts.begin()
        _, output = self._call(self._machines.follow(), show=True)
        ends = [match for line in output.splitlines() if (match := STATUS.match(line))]
        return int(ends[-1][1]) if ends else None

    def _call(self, command: list[str], quiet: bool = False, show: bool = False):
        """Runs a command; its status, and the end of what it printed."""
        if not quiet:
            self._say(f"gcloud {command[4]}")
        try:
            self._now = subprocess.Popen(
                command,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except FileNotFoundError:
            raise ConfigError("gcloud is not on this host; install the Google Cloud CLI") from None
        lines = []
        for line in self._now.stdout:
            lines = [*lines[-200:], line]
            if show and not STATUS.match(line):
                print(line, end="", flush=True)
        return self._now.wait(), "".join(lines)

    def _say(self, message: str) -> None:
        print(f"launch: {self._machines.name}: {message}", flush=True)


def _machines(jobs: Sequence[Job], options: argparse.Namespace) -> list[Machines]:
    version = commit()
    names = resource_names(list(jobs), options.name, 50)
    return [Machines(name, job, options, version) for name, job in zip(names, jobs, strict=True)]


def describe(jobs: Sequence[Job], options: argparse.Namespace) -> str:
    """The commands in the order in which they would be given."""
    lines = []
    for machines in _machines(jobs, options):
        if not options.repository:
            lines.append(shlex.join(["git", *_archive(machines, Path())]))
        lines += [shlex.join(machines.create())]
        lines += ["# until it is ACTIVE:", shlex.join(machines.state())]
        lines += map(shlex.join, [*machines.prepare(), machines.start(), machines.follow()])
        lines += ["# at the end, and before it is asked for again:", shlex.join(machines.delete())]
    return "\n".join(lines)


def run(jobs: Sequence[Job], options: argparse.Namespace) -> int:
    """Starts all jobs and follows them; the status of the first that ended badly."""
    leave = threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        runs = [Run(machines, Path(folder), leave) for machines in _machines(jobs, options)]
        for machines in [] if options.repository else [run._machines for run in runs]:
            git(*_archive(machines, Path(folder)))

        def go(*_):
            leave.set()
            for run in runs:
                run.interrupt()

        before = {n: signal.signal(n, go) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            with concurrent.futures.ThreadPoolExecutor(len(runs)) as pool:
                statuses = [future.result() for future in [pool.submit(r.run) for r in runs]]
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return next((status for status in statuses if status), 0)


def _archive(machines: Machines, folder: Path) -> list[str]:
    file = folder / machines.archive
    return ["archive", "--format=tar.gz", f"--output={file}", machines.version]
