"""Trains, samples and evaluates diffusion models, CLIP and stacks of them; converts their data.

    python main.py --config=configs/digits.py --workdir=runs/digits
    python main.py --config=configs/digits.py:smoke --workdir=runs/smoke --config.train.steps=5
    python main.py --mode=sample --workdir=runs/digits --config.sample.count=1000
    python main.py --mode=evaluate --workdir=runs/digits
    python main.py --mode=follow --workdir=runs/digits --config.evaluate.count=1000
    python main.py --mode=report --workdir=runs/digits
    python main.py --mode=likelihood --workdir=runs/digits
    python main.py --mode=convert --config=configs/cifar10_ddpm.py --workdir=data/cifar10
    python main.py --mode=embed --workdir=runs/shapes_clip
    python main.py --mode=inspect --config=configs/digits.py --workdir=runs/digits

A stack of stages (configs/stack.py) is trained, asked and measured as one:

    python main.py --config=configs/unclip_shapes.py --workdir=runs/unclip
    python main.py --mode=generate --workdir=runs/unclip \\
        --prompt="a small red circle on a blue background"
    python main.py --mode=evaluate --workdir=runs/unclip
    python main.py --mode=inspect --config=configs/unclip_paper.py --workdir=runs/unclip_paper

Any field of configs/base.py, or configs/stack.py, can be set by --config.field=value.
"""

import functools
import importlib
import logging as std_logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging
from etils import epath
from ml_collections import FrozenConfigDict

from training import command_line, components
from training.components import ConfigError, nearest
from training.config import freeze, validate
from training.exit_codes import FAILED, MISTAKE, RETRY, Preempted, TrainingFailed, TryAgain
from training.files import full
from training.stack import check_stack, is_stack, validate_stack

# What each mode calls, with (config, workdir). Imported when called, and JAX with it: a mistake on
# the command line is found before that.
MODES = {
    "train": "training.loop:train",
    "sample": "pipelines.sampling:sample",
    "evaluate": "evaluation.job:evaluate",
    "follow": "evaluation.follow:follow",
    "report": "evaluation.report:report",
    "likelihood": "pipelines.likelihood:likelihood",
    "convert": "pipelines.convert:convert",
    "embed": "pipelines.embed:embed",
    "inspect": "pipelines.inspect:inspect",
    # Of priors: numbers that sampling or training reads.
    "estimate": "pipelines.analytic:estimate",
    "quantize": "pipelines.quantize:quantize",
}

# The same of a config with stages.
STACK_MODES = {
    "train": "pipelines.stack:train",
    "generate": "pipelines.generate:generate",
    "evaluate": "evaluation.stack:evaluate",
    "report": "evaluation.report:report",
    "inspect": "pipelines.stack_summary:inspect",
}

FLAGS = flags.FLAGS
flags.DEFINE_string("config", None, "file.py or file.py:variant; default: that of --workdir")
flags.DEFINE_string("workdir", None, "directory or bucket URL that holds all of the run")
flags.DEFINE_string("mode", "train", " | ".join(dict.fromkeys([*MODES, *STACK_MODES])))
flags.DEFINE_string("coordinator", "auto", "auto | none | host:port of process 0 (docs/pods.md)")
flags.DEFINE_integer("processes", 0, "how many there are, with --coordinator=host:port")
flags.DEFINE_integer("process", -1, "which of them this is, with --coordinator=host:port")
flags.DEFINE_integer("heartbeat", 100, "seconds after which a silent process counts as dead")
flags.DEFINE_multi_string("prompt", [], "what a picture is to show; as often as one likes")
flags.DEFINE_string("prompts", None, "file with a prompt on each line")


def told(function: Callable) -> Callable:
    """Makes an expected end of the program one line and an exit code (training/exit_codes.py)."""
    codes = {ConfigError: MISTAKE, TrainingFailed: FAILED, TryAgain: RETRY}

    @functools.wraps(function)
    def run(arguments):
        try:
            return function(arguments)
        except tuple(codes) as error:
            print(f"main.py: {error}", file=sys.stderr)
            code = next(code for kind, code in codes.items() if isinstance(error, kind))
            leave(code, together=isinstance(error, Preempted))
        except Exception as error:
            if full(error):
                print(f"main.py: {error}; what is written stays, make room", file=sys.stderr)
                leave(RETRY)
            if not _joined():
                raise
            traceback.print_exc()
            leave(1)

    return run


def leave(code: int, together: bool = False) -> None:
    """Ends the program. One of several processes does so without asking the others.

    They may be waiting for this one in the middle of a step, and it would wait for them at its end;
    `together` says that all of them end now.
    """
    if _joined() and not together:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _joined() -> bool:
    """Whether this is one of several processes; JAX is not imported to find out."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


@told
def parse(arguments: Sequence[str]) -> FrozenConfigDict:
    """Reads the flags, and the config with its overrides, and checks them. Needs no JAX."""
    overrides, rest = command_line.split(arguments)
    try:
        positional = FLAGS(rest)[1:]
    except flags.Error as error:
        raise ConfigError(str(error)) from error
    if positional:
        raise ConfigError(f"{positional[0]!r} is no flag; write values as --flag=value")
    if FLAGS.mode not in MODES | STACK_MODES:
        allowed = MODES | STACK_MODES
        raise ConfigError(f"--mode={FLAGS.mode}: no such mode; {nearest(FLAGS.mode, allowed)}")
    if not FLAGS.workdir:
        raise ConfigError("--workdir is missing: the directory for all that the run writes")
    path = FLAGS.config
    if not path and FLAGS.mode in ("train", "convert", "quantize"):
        raise ConfigError("--config is missing; configs/digits.py is the quickest one")
    if not path:
        path = str(epath.Path(FLAGS.workdir) / "config.json")
        if not epath.Path(path).exists():
            raise ConfigError(f"--workdir={FLAGS.workdir}: no run there (it has no config.json)")
    config = command_line.read(path)
    command_line.override(config, overrides)
    if FLAGS.mode not in (STACK_MODES if is_stack(config) else MODES):
        raise ConfigError(_other_kind(config, path))
    if prompts := _prompts():
        if FLAGS.mode != "generate":
            raise ConfigError(f"--prompt is for --mode=generate, not --mode={FLAGS.mode}")
        config.generate.prompts = prompts
    if is_stack(config):
        validate_stack(config)
    else:
        validate(config)
    return freeze(config)


def _prompts() -> tuple[str, ...]:
    """Those of the command line: each --prompt, then the lines of --prompts."""
    if not FLAGS.prompts:
        return tuple(FLAGS.prompt)
    try:
        lines = epath.Path(FLAGS.prompts).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompts={FLAGS.prompts}: cannot be read as text ({error})") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ConfigError(f"--prompts={FLAGS.prompts}: has no prompt; write one on each line")
    return (*FLAGS.prompt, *prompts)


def _other_kind(config, path: str) -> str:
    """A mode that a single run has and a stack has not, or the reverse."""
    if is_stack(config):
        stages = " or ".join(f"{FLAGS.workdir}/{name}" for name in config.order)
        return (
            f"--mode={FLAGS.mode} is of a single stage, and {path} has several; take its work "
            f"directory: --workdir={stages}"
        )
    return (
        f"--mode={FLAGS.mode} is of a stack of stages such as configs/unclip_shapes.py, and {path} "
        "is the config of a single run"
    )


@told
def main(config: FrozenConfigDict) -> None:
    """Runs the mode; some mistakes show only here, with JAX and the data at hand."""
    # The libraries tell of each step they take; of them only warnings are of use to a user.
    logging.set_verbosity(logging.WARNING)
    stacked = is_stack(config)
    if stacked:
        check_stack(config)
    else:
        components.check(config)
    processes = importlib.import_module("training.processes")
    place = FLAGS.coordinator, FLAGS.processes, FLAGS.process
    processes.join(*place, FLAGS.heartbeat, preemption=FLAGS.mode == "train")
    if FLAGS.mode in ("train", "sample", "generate", "evaluate", "follow") or stacked:
        # For their large programs; the other modes compute little.
        importlib.import_module("training.allocator").keep_freed_memory()
    # The first look at the devices, which starts JAX's threads.
    processes.introduce()
    if processes.first():
        std_logging.getLogger("training").setLevel(std_logging.INFO)
    module, function = (STACK_MODES if stacked else MODES)[FLAGS.mode].split(":")
    getattr(importlib.import_module(module), function)(config, FLAGS.workdir)


if __name__ == "__main__":
    # JAX reads this when it is imported.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "jax-diffusion"))
    app.run(main, flags_parser=parse)
