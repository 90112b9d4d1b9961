"""The variance of analytic-DPM for a run: `python main.py --mode=estimate`.

    <workdir>/analytic.json

which `config.sample.solver = "ddpm(variance='analytic', estimates='<workdir>/analytic.json')"`
reads. It is of one checkpoint and of the levels of one grid, that of config.sample.
"""

import os
from typing import Any

import jax
import numpy as np

import diffusion
from diffusion.solvers import analytic
from training import checkpoints, components, contract, tasks
from training.components import ConfigError
from training.mesh import make_mesh
from training.tasks.prior import PriorTask
from training.workdir import Workdir

# Examples that the means are taken over, and batches they come in (Bao et al. 2022 take 10,000
# images at most).
_COUNT, _BATCHES = 8192, 16
FILE = "analytic.json"


def estimate(config: Any, directory: str | os.PathLike[str]) -> None:
    """Writes the estimates of a run's checkpoint and prints how to use them.

    Raises:
        ConfigError: the run is no diffusion prior, or has no checkpoint.
    """
    workdir = Workdir(directory)
    task = tasks.make_task(config)
    if not isinstance(task, PriorTask):
        raise ConfigError(
            f"config.task = {config.task!r}: --mode=estimate is for runs of task 'prior'"
        )
    contract.check_kept(task.embeddings, workdir)
    params, step = checkpoints.restore_for_sampling(
        workdir.checkpoints,
        config.sample.ema,
        task.init,
        make_mesh(**config.mesh),
        config.sample.checkpoint,
        averages=workdir.read_config().ema,
    )
    found = estimates(task, params)
    path = workdir.path / FILE
    if jax.process_index() == 0:
        found.save(path)
        solver = f"ddpm(variance='analytic', estimates={os.fspath(path)!r})"
        print(f"step {step}: {len(found.logsnr)} levels", flush=True)
        print(f'--config.sample.solver="{solver}"', flush=True)


def estimates(task: PriorTask, params: Any, count: int = _COUNT) -> analytic.EpsEstimates:
    """At the levels of `config.sample`'s grid, over the first `count` examples of the data."""
    settings = task.config.sample
    make_grid = components.build(diffusion.GRIDS, settings.grid, "config.sample.grid")
    grid = make_grid(task.schedule, settings.steps, settings.last_step)
    finite = np.isfinite(grid.logsnr)
    levels = diffusion.NoiseLevel(*(field[finite] for field in grid))
    pairs = task.embeddings.read(count)
    size = -(-len(pairs["image_embedding"]) // _BATCHES)
    # Batches of one shape; a part of one is left out.
    starts = range(0, len(pairs["image_embedding"]) - size + 1, size)
    batches = (
        task.examples({name: value[k : k + size] for name, value in pairs.items()}) for k in starts
    )
    return analytic.estimate(task.denoiser, params, batches, levels, jax.random.key(0))
