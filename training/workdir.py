"""The work directory: where everything about a run is, and what was run."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict, FrozenConfigDict

from training.components import ConfigError
from training.config import differences, load, save
from training.exit_codes import TryAgain
from training.files import atomic_write, full
from training.root import stack_of, unfill

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class Workdir:
    """Names of all files of a run under one path, local or a bucket URL.

    Only process 0 writes the files that there is one of; the methods that do are no-ops elsewhere.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = epath.Path(path)
        self.config = self.path / "config.json"
        self.run = self.path / "run.json"
        self.tokenizer = self.path / "tokenizer.json"
        self.contract = self.path / "contract.json"
        self.embeddings = self.path / "embeddings"
        self.parameters = self.path / "parameters.txt"
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.timing = self.path / "timing.jsonl"
        self.previews = self.path / "previews"
        self.samples = self.path / "samples"
        self.generated = self.path / "generated"
        self.evaluation = self.path / "evaluation"
        self.profile = self.path / "profile"

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __repr__(self) -> str:
        return f"Workdir({os.fspath(self.path)!r})"

    def start(self, config: ConfigDict | FrozenConfigDict, command: Sequence[str]) -> None:
        """Make the directory, write config.json and append this start to run.json.

        A later start may change fields (more steps, another log interval); config.json is the
        newest, and the entry of the start lists every change as {field: [before, now]}.

        Raises:
            ConfigError: the directory cannot be made or written.
            TryAgain: the disk is full.
        """
        if jax.process_index() != 0:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            entry = provenance() | {"command": list(command)}
            if self.config.exists():
                changed = differences(self.read_config(), config)
                entry["config_changes"] = {field: [old, new] for field, old, new in changed}
            save(self._portable(config), self.config)
            runs = json.loads(self.run.read_text()) if self.run.exists() else []
            atomic_write(self.run, _pretty([*runs, entry]))
        except OSError as error:
            if full(error):
                raise TryAgain(f"--workdir={os.fspath(self.path)}: {error.strerror}") from error
            raise ConfigError(
                f"--workdir={os.fspath(self.path)} cannot be written ({error.strerror or error}); "
                "give a directory that this user may create and write"
            ) from error

    def _portable(self, config: ConfigDict | FrozenConfigDict) -> ConfigDict | FrozenConfigDict:
        """The config of a stage of a stack with '{root}' for the stack's work directory."""
        root = stack_of(self.config)
        return config if root is None else ConfigDict(unfill(config.to_dict(), root))

    def read_config(self) -> ConfigDict:
        """The config of the newest start.

        Raises:
            ConfigError: no run was ever started here.
        """
        if not self.config.exists():
            raise ConfigError(
                f"--workdir={os.fspath(self.path)} has no config.json: no run was started there; "
                "train first, or give the directory of a run"
            )
        return load(self.config)


def provenance() -> dict[str, Any]:
    """What produces a result: code, libraries, devices and the time (UTC), as JSON values."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "code": code_version(Path(__file__).resolve().parent.parent),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
        "devices": {
            "platform": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
    }


def code_version(root: Path) -> dict[str, Any]:
    """Commit of the checkout at `root`, whether it has changes, and what they are.

    `diff` is that of the tracked files; `untracked` names the rest. Where `root` is not the top of
    a git checkout, commit is None and `reason` says why.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", os.fspath(root), *arguments]
        done = subprocess.run(command, capture_output=True, check=True)
        return done.stdout.decode(errors="replace")

    try:
        top = Path(git("rev-parse", "--show-toplevel").rstrip("\n"))
        if top.resolve() != root.resolve():
            return {"commit": None, "reason": f"{root} is not the top of a git checkout"}
        commit = git("rev-parse", "HEAD").strip()
    except FileNotFoundError:
        return {"commit": None, "reason": "git is not installed"}
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip().split("\n")[0]
        return {"commit": None, "reason": reason}
    diff = git("diff", "HEAD")
    new = git("ls-files", "--others", "--exclude-standard", "--directory").splitlines()
    return {"commit": commit, "dirty": bool(diff or new), "diff": diff, "untracked": new}


def _pretty(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
