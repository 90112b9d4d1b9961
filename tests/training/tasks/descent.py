"""A task's training without its loop."""

import jax
import numpy as np
import optax


def descend(task, params, batch, rngs, optimizer):
    """(parameters, losses) after a step of the optimizer on the same batch for each of `rngs`.

    Steps and no `lax.scan`, in which convolutions take several times as long on a CPU.
    """

    @jax.jit
    def step(params, state, rng):
        loss, slopes = jax.value_and_grad(lambda p: task.loss(p, {}, batch, rng)[0])(params)
        updates, state = optimizer.update(slopes, state)
        return optax.apply_updates(params, updates), state, loss

    state, losses = optimizer.init(params), []
    for rng in rngs:
        params, state, loss = step(params, state, rng)
        losses.append(loss)
    return params, np.array(losses)
