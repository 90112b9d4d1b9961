"""What a machine elsewhere needs of this one: the code, and paths that mean something there."""

import dataclasses
import subprocess
import sys
from pathlib import Path

from launch.job import ROOT, Job, is_url
from training.components import ConfigError


def git(*arguments: str) -> str:
    """The output of a git command in this repository."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ConfigError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def commit() -> str:
    """The commit that is checked out; says so where files differ from it."""
    changed = git("status", "--porcelain", "--untracked-files=no")
    if changed:
        files = ", ".join(line.split(maxsplit=1)[1] for line in changed.splitlines()[:5])
        print(f"launch: not committed, so not sent: {files}", file=sys.stderr)
    return git("rev-parse", "HEAD")


def portable(job: Job, python: str) -> Job:
    """The job as it is started in the root of the repository on another machine.

    Raises:
        ConfigError: its config or work directory are of this machine alone.
    """
    config = job.config
    if config and not is_url(config):
        path, colon, variant = config.partition(":")
        file = Path(path).resolve()
        if not file.is_relative_to(ROOT):
            raise ConfigError(
                f"--config={config}: must be in the repository ({ROOT}), which is what the "
                "machines get, or in a bucket"
            )
        config = f"{file.relative_to(ROOT)}{colon}{variant}"
    if not is_url(job.workdir) and not job.workdir.startswith("/"):
        raise ConfigError(
            f"--workdir={job.workdir}: must be a bucket, gs://bucket/run, or the absolute path of "
            "a file system that all machines mount"
        )
    return dataclasses.replace(job, config=config, python=python, program="main.py")
