"""The checks that main.py makes before it starts, made before anything is submitted."""

from collections.abc import Sequence

import main
from launch.job import Job
from training import components
from training.components import ConfigError, nearest
from training.stack import check_stack, is_stack


def check_flags(flags: Sequence[str], options: Sequence[str]) -> None:
    """Refuses flags that neither the launcher nor main.py has.

    Args:
        flags: what the launcher did not take for its own.
        options: names of the launcher's own, for the message.
    """
    known = {flag.name for flag in main.FLAGS.get_key_flags_for_module(main)}
    for flag in flags:
        name = flag.lstrip("-").partition("=")[0]
        if flag.startswith("-") and name not in known:
            raise ConfigError(f"--{name}: no such option; {nearest(name, known | set(options))}")


def check_jobs(jobs: Sequence[Job], *, whole: bool) -> None:
    """Parses each job's command line and checks its config as main.py does.

    Args:
        jobs: as they will be started.
        whole: also the names and arguments of components. That imports JAX, and is for what
            waits in a queue before main.py can check it itself.

    Raises:
        ConfigError: two jobs are the same, or a component is wrong.
        SystemExit: with status 2, after the message of main.py's own parser.
    """
    seen = {}
    for job in jobs:
        config = _parse(job)
        text = config.to_json_best_effort(sort_keys=True)
        if text in seen:
            raise ConfigError(
                f"--sweep: {seen[text]!r} and {job.name!r} are the same config; leave one out"
            )
        seen[text] = job.name
        if whole and is_stack(config):
            check_stack(config)
        elif whole:
            components.check(config)


def _parse(job: Job):
    # Flags of an earlier job would stay.
    for flag in main.FLAGS.get_key_flags_for_module(main):
        flag.unparse()
    return main.parse(["main.py", *job.arguments()])
