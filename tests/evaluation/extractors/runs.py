"""Runs that were never trained: a checkpoint of random parameters."""

import jax
import jax.numpy as jnp

from training import checkpoints, tasks
from training.config import freeze
from training.state import TrainState
from training.workdir import Workdir


def start(path, config, step=3):
    """The task and the average of the run; unlike what training begins with nothing is zero."""
    Workdir(path).start(config, [])
    task = tasks.make_task(freeze(config))
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    draws = [0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    params = structure.unflatten(draws)
    zero = jnp.zeros((), jnp.int32)
    rest = {"opt_state": {"count": zero}, "task": {}, "metrics": {}, "rng": keys[0]}
    counters = dict.fromkeys(("step", "window", "bad_steps", "bad_streak", "bad_since"), zero)
    store = checkpoints.Checkpoints(Workdir(path).checkpoints)
    store.save(step, TrainState(params=params, ema={"default": params}, **rest, **counters), {})
    store.close()
    return task, params
