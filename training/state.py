"""The train state: everything that a resumed run needs to go on bit for bit."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from training import mesh as meshes
from training import partition

# A scalar on the mesh: an array, or its shape, sharding or bytes, as the tree is used for.
Leaf = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What one training step takes and gives. The loader's position is kept beside it."""

    step: Leaf
    params: dict
    opt_state: Any
    # Averages of params, by name.
    ema: dict[str, dict]
    # What the task keeps from step to step; empty for most.
    task: dict
    # Root of all randomness of training, a typed key; step s uses fold_in(rng, s).
    rng: Leaf
    # Sums of the metrics over the good steps since the last log line, and how many those are.
    metrics: dict[str, Leaf]
    window: Leaf
    # Steps skipped for a NaN or infinite gradient: all of them, those in a row up to now, and the
    # number of the first of that row.
    bad_steps: Leaf
    bad_streak: Leaf
    bad_since: Leaf
    # Read only, and not in checkpoints: a teacher's parameters, loaded again at each start.
    frozen: dict = dataclasses.field(default_factory=dict)


def by_path(params) -> dict[str, Leaf]:
    """Leaves by their path, such as 'down/0/conv/kernel'."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {partition.name(path): leaf for path, leaf in leaves}


def _merged(params, loaded):
    """`params` with the values of `loaded` at the low end of each axis, and zeros beyond them."""

    def merged(path, leaf):
        if path not in loaded:
            return leaf
        value = loaded[path].astype(leaf.dtype)
        beyond = [(0, ours - its) for ours, its in zip(leaf.shape, value.shape, strict=True)]
        return jnp.pad(value, beyond)

    leaves = [merged(path, leaf) for path, leaf in by_path(params).items()]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def initial_state(
    task,
    optimizer: optax.GradientTransformation,
    ema_names,
    metrics,
    seed: int,
    frozen=None,
    loaded=None,
):
    """State before the first step (to be traced, see `sharded_init`).

    With `frozen`, what the task only reads, its parameters are those of `task.start`, if it has it.
    `loaded` are values by path that take the place of those drawn (`training.init_from`).
    """
    init_rng, train_rng = jax.random.split(jax.random.key(seed))
    params = task.init(init_rng)
    if frozen and hasattr(task, "start"):
        params = task.start(params, frozen)
    if loaded:
        params = _merged(params, loaded)

    def zero():
        return jnp.zeros((), jnp.int32)

    return TrainState(
        step=zero(),
        params=params,
        opt_state=optimizer.init(params),
        ema={name: jax.tree.map(jnp.copy, params) for name in ema_names},
        task=task.init_state(),
        rng=train_rng,
        metrics={name: jnp.zeros((), jnp.float32) for name in metrics},
        window=zero(),
        bad_steps=zero(),
        bad_streak=zero(),
        bad_since=zero(),
        frozen=frozen or {},
    )


def sharded_init(init, mesh: Mesh, *given):
    """Makes a state on the mesh, no leaf ever whole on one device unless its sharding says so.

    Returns:
        (abstract state with shardings, function (*given) -> state; here `given` is abstract).
    """
    abstract = jax.eval_shape(init, *given)
    sharding = meshes.state_sharding(abstract, mesh)
    return meshes.with_sharding(abstract, sharding), jax.jit(init, out_shardings=sharding)
