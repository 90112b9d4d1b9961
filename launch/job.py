"""What is to be run: one command line of main.py, wherever its processes are."""

import dataclasses
import hashlib
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from training.components import ConfigError

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of main.py: the same arguments for each of its processes."""

    workdir: str
    config: str | None = None
    mode: str = "train"
    # As on the command line: '--config.train.steps=5'.
    overrides: tuple[str, ...] = ()
    # Other flags of main.py, handed on: '--heartbeat=50'.
    flags: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    # What tells a job of a sweep from the others; '' for a single one.
    name: str = ""
    python: str = sys.executable
    program: str = str(ROOT / "main.py")

    @property
    def root(self) -> str:
        """The work directory, of a sweep the one that holds those of its jobs."""
        return self.workdir.removesuffix(f"/{self.name}") if self.name else self.workdir

    def arguments(self) -> list[str]:
        """What main.py is told, the same for each process."""
        config = [f"--config={self.config}"] if self.config else []
        mode = [f"--mode={self.mode}"] if self.mode != "train" else []
        return [*config, f"--workdir={self.workdir}", *mode, *self.flags, *self.overrides]

    def argv(
        self,
        *,
        coordinator: str | None = None,
        processes: int | None = None,
        process: int | str | None = None,
    ) -> list[str]:
        """The command of one process.

        Args:
            coordinator: 'none', or 'host:port' with both of the others; None leaves all to
                main.py, which finds out where it is.
            processes: how many there are.
            process: which of them this is, or the name of a variable that says so.
        """
        given = {"coordinator": coordinator, "processes": processes, "process": process}
        place = [f"--{name}={value}" for name, value in given.items() if value is not None]
        return [self.python, self.program, *self.arguments(), *place]

    def command(self, **place) -> str:
        """`argv` quoted for a shell, its environment variables before it."""
        return shell(self.argv(**place), dict(self.env))


def shell(argv: Sequence[str], env: Mapping[str, str]) -> str:
    """A command as one types it, with its environment variables before it."""
    return " ".join([f"{name}={shlex.quote(env[name])}" for name in env] + [shlex.join(argv)])


def is_url(path: str | None) -> bool:
    """Whether a path is of a bucket: gs://..., s3://..."""
    return "://" in (path or "")


def absolute(path: str) -> str:
    """The path as another working directory sees it; a bucket's stays as it is."""
    return path if is_url(path) else os.path.abspath(path)


def join(workdir: str, name: str) -> str:
    """A directory inside of a work directory, which may be a bucket's."""
    return f"{workdir.rstrip('/')}/{name}" if name else workdir


def logs(workdir: str) -> Path:
    """Where what processes print goes: to a disk, also where the work directory is a bucket."""
    if is_url(workdir):
        return Path("logs").absolute() / re.sub(r"[^\w.=,+-]+", "-", workdir.partition("://")[2])
    return Path(workdir).absolute() / "logs"


def resource_name(text: str, longest: int) -> str:
    """A name as clusters want it (RFC 1035): lower case letters, digits, '-', a letter first."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    name = name if name[:1].isalpha() else f"run-{name}".strip("-")
    if len(name) > longest:
        name = f"{name[: longest - 7]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    return name


def resource_names(jobs: list[Job], name: str | None, longest: int) -> list[str]:
    """A cluster's name for each job: `name` or the work directory's, numbered in a sweep."""
    base = name or jobs[0].root.rstrip("/").rpartition("/")[2]
    base = resource_name(base, longest - 4 if len(jobs) > 1 else longest)
    return [base] if len(jobs) == 1 else [f"{base}-{index}" for index in range(len(jobs))]


def environment(given: list[str]) -> tuple[tuple[str, str], ...]:
    """Reads `--env NAME=VALUE`."""
    pairs = []
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ConfigError(f"--env={text}: must be NAME=VALUE")
        pairs.append((name, value))
    return tuple(pairs)
