"""One training step: gradient (over microbatches), guard, update, averages, running metrics."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from diffusion.time_samplers import Part, part_of_step
from models import functional
from training import ema, partition
from training.mesh import batch_sharding, state_sharding
from training.optimizer import evaluation_params
from training.state import TrainState


def _microbatches(batch, count: int, mesh: Mesh):
    """[B, ...] -> [count, B / count, ...], each device keeping the rows that it has."""
    sharding = batch_sharding(mesh)

    def split(x):
        x = jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)
        spec = jax.sharding.PartitionSpec(None, *sharding.spec)
        return jax.lax.with_sharding_constraint(x, jax.sharding.NamedSharding(mesh, spec))

    return jax.tree.map(split, batch)


def gradient(loss: Callable, params, task_state, batch, rng, accumulate: int, mesh: Mesh):
    """(loss, metrics, gradient), means over `accumulate` microbatches, and the task's new state.

    The microbatches come one after the other: each sees the state that the one before left. Noise
    levels that are spread over a batch are spread over all of them.
    """

    def value_and_grad(task_state, batch, rng):
        with_aux = jax.value_and_grad(loss, has_aux=True)
        (value, (metrics, task_state)), grads = with_aux(params, task_state, batch, rng)
        return (value, metrics, grads), task_state

    if accumulate == 1:
        return value_and_grad(task_state, batch, rng)

    def one(carry, item):
        total, task_state = carry
        index, micro = item
        # No microbatch has this key for its own.
        part = Part(jax.random.fold_in(rng, accumulate), index, accumulate)
        with part_of_step(part):
            result, task_state = value_and_grad(task_state, micro, jax.random.fold_in(rng, index))
        return (jax.tree.map(jnp.add, total, result), task_state), None

    micros = _microbatches(batch, accumulate, mesh)
    first = jax.tree.map(lambda x: x[0], micros)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(value_and_grad, task_state, first, rng)[0],
    )
    # The sum lies as the parameters do, whatever the compiler would have made of a loop.
    zeros = jax.lax.with_sharding_constraint(zeros, state_sharding(zeros, mesh))
    (total, task_state), _ = jax.lax.scan(
        one, (zeros, task_state), (jnp.arange(accumulate), micros)
    )
    return jax.tree.map(lambda x: x / accumulate, total), task_state


def _ascend(params, grads, distance: float):
    scale = distance / (optax.tree.norm(grads) + 1e-12)
    return jax.tree.map(lambda p, g: p + scale * g, params, grads)


def make_train_step(
    task,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    ema_rates: Mapping[str, ema.Rate],
    mesh: Mesh,
    *,
    accumulate: int,
    log_every: int,
    max_bad_steps: int,
    sam_rho: float = 0.0,
) -> Callable[[TrainState, Mapping], TrainState]:
    """The function (state, batch) -> state of one step, to be jitted with the state donated.

    A step whose loss or gradient is NaN or infinite changes only the counters. After
    `max_bad_steps` of them in a row nothing changes any more, so that the loop, which looks at the
    counters only where it logs, finds the state as it was before the first of them.

    With `sam_rho` the gradient is that of sharpness-aware minimization (Foret et al. 2021, eq. 2
    and 3): taken again, on the same batch and noise, at a distance `sam_rho` up the gradient. Loss,
    metrics and the task's state stay those of the parameters themselves.
    """

    def train_step(state: TrainState, batch) -> TrainState:
        rng = jax.random.fold_in(state.rng, state.step)
        read_only = _read_only(task, state.frozen, state.ema)

        def loss_of(params, task_state, batch, rng):
            with functional.read_by(partition.reader(mesh)):
                return task.loss(params, task_state | read_only, batch, rng)

        def evaluate(params):
            return gradient(loss_of, params, state.task, batch, rng, accumulate, mesh)

        (loss, metrics, grads), task_state = evaluate(state.params)
        if sam_rho > 0:
            (_, _, grads), _ = evaluate(_ascend(state.params, grads, sam_rho))
        grad_norm = optax.tree.norm(grads)

        halted = state.bad_streak >= max_bad_steps
        finite = jnp.isfinite(grad_norm) & jnp.isfinite(loss)
        good = finite & ~halted

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averages = ema.update(
            state.ema, evaluation_params(opt_state, params), ema_rates, state.step + 1
        )

        def keep(new, old):
            return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)

        values = metrics | {
            "loss": loss,
            "grad_norm": grad_norm,
            # The optimizer has counted the good steps only.
            "learning_rate": learning_rate(state.step - state.bad_steps),
        }
        fresh = state.step % log_every == 0
        sums = {
            name: jnp.where(fresh, 0, state.metrics[name])
            + jnp.where(good, jnp.asarray(values[name], jnp.float32), 0)
            for name in state.metrics
        }
        streak = jnp.where(halted, state.bad_streak, jnp.where(finite, 0, state.bad_streak + 1))
        return TrainState(
            step=state.step + 1,
            params=keep(params, state.params),
            opt_state=keep(opt_state, state.opt_state),
            ema=keep(averages, state.ema),
            task=keep(task_state, state.task),
            rng=state.rng,
            metrics=sums,
            window=jnp.where(fresh, 0, state.window) + good,
            bad_steps=state.bad_steps + ~good,
            bad_streak=streak,
            bad_since=jnp.where(state.bad_streak == 0, state.step + 1, state.bad_since),
            frozen=state.frozen,
        )

    return train_step


def _read_only(task, frozen: Mapping, averages: Mapping) -> dict:
    """What the loss finds in its state and does not give back."""
    name = getattr(task, "average", None)
    return {**frozen, "average": averages[name]} if name else dict(frozen)


def metric_names(task, batch_spec: Mapping, frozen: Mapping | None = None) -> tuple[str, ...]:
    """Names of the running metrics: the task's own and the step's."""
    params = jax.eval_shape(task.init, jax.random.key(0))
    averages = {getattr(task, "average", None): params}
    task_state = jax.eval_shape(task.init_state) | _read_only(task, frozen or {}, averages)
    _, (metrics, _) = jax.eval_shape(task.loss, params, task_state, batch_spec, jax.random.key(0))
    return ("loss", *metrics, "grad_norm", "learning_rate")
