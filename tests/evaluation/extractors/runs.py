"""Runs that were never trained: a checkpoint of random parameters."""

import jax
import jax.numpy as jnp
import numpy as np

from training import checkpoints, tasks
from training.config import freeze
from training.state import TrainState
from training.workdir import Workdir


def start(path, config, step=3):
    """The task and the average of the run; unlike what training begins with nothing is zero."""
    Workdir(path).start(config, [])
    task = tasks.make_task(freeze(config))
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    rng = np.random.default_rng(1)
    draws = jax.tree.map(lambda s: np.float32(0.2 * rng.standard_normal(s.shape)), shapes)
    params = jax.device_put(draws)
    zero = jnp.zeros((), jnp.int32)
    rest = {"opt_state": {"count": zero}, "task": {}, "metrics": {}, "rng": jax.random.key(0)}
    counters = dict.fromkeys(("step", "window", "bad_steps", "bad_streak", "bad_since"), zero)
    store = checkpoints.Checkpoints(Workdir(path).checkpoints)
    store.save(step, TrainState(params=params, ema={"default": params}, **rest, **counters), {})
    store.close()
    return task, params
