"""Trains, samples and evaluates diffusion models and CLIP, and converts their data.

    python main.py --config=configs/digits.py --workdir=runs/digits
    python main.py --config=configs/digits.py:smoke --workdir=runs/smoke --config.train.steps=5
    python main.py --mode=sample --workdir=runs/digits --config.sample.count=1000
    python main.py --mode=evaluate --workdir=runs/digits
    python main.py --mode=likelihood --workdir=runs/digits
    python main.py --mode=convert --config=configs/cifar10_ddpm.py --workdir=data/cifar10
    python main.py --mode=embed --workdir=runs/shapes_clip
    python main.py --mode=inspect --config=configs/digits.py --workdir=runs/digits

Any field of configs/base.py can be set by --config.field=value.
"""

import functools
import importlib
import logging as std_logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging
from etils import epath
from ml_collections import FrozenConfigDict

from training import command_line, components
from training.components import ConfigError, nearest
from training.config import freeze, validate

# What each mode calls, with (config, workdir). Imported when called, and JAX with it: a mistake on
# the command line is found before that.
MODES = {
    "train": "training.loop:train",
    "sample": "pipelines.sampling:sample",
    "evaluate": "evaluation.job:evaluate",
    "likelihood": "pipelines.likelihood:likelihood",
    "convert": "pipelines.convert:convert",
    "embed": "pipelines.embed:embed",
    "inspect": "pipelines.inspect:inspect",
    # Of priors: numbers that sampling or training reads.
    "estimate": "pipelines.analytic:estimate",
    "quantize": "pipelines.quantize:quantize",
}

FLAGS = flags.FLAGS
flags.DEFINE_string("config", None, "file.py or file.py:variant; default: that of --workdir")
flags.DEFINE_string("workdir", None, "directory or bucket URL that holds all of the run")
flags.DEFINE_string("mode", "train", " | ".join(MODES))


def exit_on_mistakes(function: Callable) -> Callable:
    """Makes a ConfigError end the program with its message and exit code 2."""

    @functools.wraps(function)
    def run(arguments):
        try:
            return function(arguments)
        except ConfigError as error:
            print(f"main.py: {error}", file=sys.stderr)
            sys.exit(2)

    return run


@exit_on_mistakes
def parse(arguments: Sequence[str]) -> FrozenConfigDict:
    """Reads the flags, and the config with its overrides, and checks them. Needs no JAX."""
    overrides, rest = command_line.split(arguments)
    try:
        positional = FLAGS(rest)[1:]
    except flags.Error as error:
        raise ConfigError(str(error)) from error
    if positional:
        raise ConfigError(f"{positional[0]!r} is no flag; write values as --flag=value")
    if FLAGS.mode not in MODES:
        raise ConfigError(f"--mode={FLAGS.mode}: no such mode; {nearest(FLAGS.mode, MODES)}")
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
    validate(config)
    return freeze(config)


@exit_on_mistakes
def main(config: FrozenConfigDict) -> None:
    """Runs the mode; some mistakes show only here, with JAX and the data at hand."""
    # The libraries tell of each step they take; of them only warnings are of use to a user.
    logging.set_verbosity(logging.WARNING)
    std_logging.getLogger("training").setLevel(std_logging.INFO)
    components.check(config)
    if FLAGS.mode in ("train", "sample"):
        # For their large programs; the other modes compute little.
        importlib.import_module("training.allocator").keep_freed_memory()
    module, function = MODES[FLAGS.mode].split(":")
    getattr(importlib.import_module(module), function)(config, FLAGS.workdir)


if __name__ == "__main__":
    # JAX reads this when it is imported.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "jax-diffusion"))
    app.run(main, flags_parser=parse)
