"""Optimizers by name, from optax, with warm-up, decay and clipping."""

import optax
from ml_collections import ConfigDict

from training import components

# Each is called with `learning_rate` and the literal arguments that config.optimizer.name gives.
OPTIMIZERS = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "adafactor": optax.adafactor,
    "lion": optax.lion,
    "sgd": optax.sgd,
}


def learning_rate(config: ConfigDict, steps: int) -> optax.Schedule:
    """Learning rate of each step: linear from 0 over the warm-up, then as config.decay says."""
    peak, warmup = config.learning_rate, config.warmup_steps
    rest = max(steps - warmup, 1)
    after = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "linear": optax.linear_schedule(peak, 0.0, rest),
    }[config.decay]
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def make_optimizer(config: ConfigDict, rate: optax.Schedule) -> optax.GradientTransformation:
    """The gradient transformation of `config.optimizer` at learning rate `rate`."""
    optimizer = components.build(
        OPTIMIZERS, config.name, "config.optimizer.name", learning_rate=rate
    )
    if config.clip_norm > 0:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    return optimizer
