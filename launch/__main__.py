"""Starts runs of main.py: here, under SLURM, on Cloud TPU, on Kubernetes.

    python -m launch local --config=configs/digits.py --workdir=runs/digits
    python -m launch slurm --config=configs/digits.py --workdir=runs/digits --nodes=2 --gpus=8
    python -m launch tpu --config=configs/digits.py --workdir=gs://bucket/digits \\
        --accelerator-type=v5litepod-16 --zone=us-west4-a --project=my-project
    python -m launch k8s --config=configs/digits.py --workdir=gs://bucket/digits --image=IMAGE \\
        --tpu=tpu-v5-lite-podslice --topology=4x4
    python -m launch plan --config=configs/imagenet64_adm.py    # what fits on which devices

Each takes the flags of main.py (--mode, --config.field=value and so on), and:

    --dry-run              print what would be started, start nothing
    --sweep config.seed=0,1,2    one job for each value; several make the product
    --env NAME=VALUE       an environment variable of each process

`python -m launch COMMAND --help` lists the options of a command; docs/launching.md explains them.
"""

import argparse
import importlib
import sys

from launch import check, sweep
from launch.job import Job, absolute, environment
from training import command_line
from training.components import ConfigError, nearest

# Imported when called for. Each has add_options(parser), check_options(options),
# describe(jobs, options) -> str and run(jobs, options) -> int.
LAUNCHERS = {
    "local": "launch.local",
    "slurm": "launch.slurm",
    "tpu": "launch.tpu",
    "k8s": "launch.k8s",
}
# Where paths are those of this host.
HERE = ("local", "slurm")


def make_parser(command: str) -> argparse.ArgumentParser:
    """The options that all launchers have."""
    parser = argparse.ArgumentParser(
        prog=f"python -m launch {command}",
        allow_abbrev=False,
        epilog="Flags of main.py and --config.field=value are handed on; see docs/launching.md.",
    )
    parser.add_argument("--config", help="file.py, file.py:variant or a run's config.json")
    parser.add_argument("--workdir", default="", help="directory or bucket URL of the run")
    parser.add_argument("--mode", default="train", help="as of main.py")
    parser.add_argument("--dry-run", action="store_true", help="print, and start nothing")
    parser.add_argument("--sweep", action="append", default=[], help=sweep.FORM)
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--python", help="the interpreter, where it is not this one")
    parser.add_argument("--program", help=argparse.SUPPRESS)
    return parser


def launch(command: str, argv: list[str]) -> int:
    """Checks everything, then prints or starts it.

    Raises:
        ConfigError: a mistake on the command line or in the config.
    """
    launcher = importlib.import_module(LAUNCHERS[command])
    parser = make_parser(command)
    launcher.add_options(parser)
    overrides, rest = command_line.split(argv)
    options, flags = parser.parse_known_args(rest)
    check.check_flags(flags, _names(parser))
    if not options.workdir:
        raise ConfigError("--workdir is missing: the directory for all that the run writes")
    launcher.check_options(options)
    given = {"python": options.python, "program": options.program}
    job = Job(
        workdir=absolute(options.workdir) if command in HERE else options.workdir,
        config=options.config,
        mode=options.mode,
        overrides=tuple(overrides),
        flags=tuple(flags),
        env=environment(options.env),
        **{name: value for name, value in given.items() if value},
    )
    jobs = sweep.expand(job, options.sweep)
    check.check_jobs(jobs, whole=command != "local")
    if options.dry_run:
        print(launcher.describe(jobs, options))
        return 0
    return launcher.run(jobs, options)


def _names(parser: argparse.ArgumentParser) -> list[str]:
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    return [name.lstrip("-") for action in shown for name in action.option_strings]


def main(argv: list[str]) -> int:
    """Dispatches on the first word."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(__doc__)
        return 0
    command, *rest = argv
    try:
        if command == "plan":
            return importlib.import_module("launch.plan").main(rest)
        if command not in LAUNCHERS:
            allowed = nearest(command, [*LAUNCHERS, "plan"])
            raise ConfigError(f"{command}: no such command; {allowed}")
        return launch(command, rest)
    except ConfigError as error:
        print(f"launch: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
