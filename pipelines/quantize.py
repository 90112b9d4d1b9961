"""The quantizer of an autoregressive prior: `python main.py --mode=quantize`.

    <workdir>/quantizer.npz

which `config.task = "autoregressive_prior(quantizer='<workdir>/quantizer.npz')"` reads.
"""

import os
from typing import Any

from training import processes, tasks
from training.components import ConfigError
from training.tasks.autoregressive_prior import AutoregressivePriorTask
from training.workdir import Workdir

FILE = "quantizer.npz"


def quantize(config: Any, directory: str | os.PathLike[str]) -> None:
    """Fits on the first pairs of `data.source`, writes, and prints the share of the variance.

    With several processes they read together, and the first one does the rest.

    Raises:
        ConfigError: the config is of no autoregressive prior, or the data are too few.
    """
    task = tasks.make_task(config)
    if not isinstance(task, AutoregressivePriorTask):
        raise ConfigError(
            f"config.task = {config.task!r}: --mode=quantize is for 'autoregressive_prior'"
        )
    found = task.fit()
    path = Workdir(directory).path / FILE

    def write() -> None:
        found.save(path)
        print(f"{len(found.low)} components hold {found.explained:.4%} of the variance", flush=True)
        print(os.fspath(path), flush=True)

    # What the others read next is whole then.
    processes.on_first(write)
