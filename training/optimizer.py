"""Optimizers by name, from optax, with warm-up, decay and clipping."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict
from optax import contrib

from training import components
from training.forced_norm import forced_weight_norm

# Parameters that Muon leaves to Adam: first and last layer, and what is looked up, not multiplied.
_NO_MATRIX = (
    "conv_in",
    "conv_out",
    "patches",
    "linear_out",
    "out",
    "label",
    "augment",
    "objective",
)
# Axes of a kernel that are summed over, by its rank: of a linear layer, a stack of them, a
# convolution, a stack of those. The last axis are the outputs; each of a stack is its own matrix.
_INPUT_AXES = {2: (-2,), 3: (-2,), 4: (-4, -3, -2), 5: (-4, -3, -2)}


def _names(path) -> list[str]:
    """Names of the layers that a parameter is in, and its own."""
    return [str(getattr(key, "key", key)) for key in path]


def _muon_axes(params, adam: tuple):
    """Which axes of a kernel make the matrix that Muon orthogonalizes; None for Adam."""

    def axes(path, leaf):
        names = _names(path)
        if names[-1] != "kernel" or leaf.ndim not in _INPUT_AXES or set(names) & set(adam):
            return None
        return contrib.MuonDimensionNumbers(_INPUT_AXES[leaf.ndim], (-1,))

    return jax.tree_util.tree_map_with_path(axes, params)


def muon(
    learning_rate: Callable,
    beta: float = 0.95,
    ns_steps: int = 5,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    consistent_rms: float | None = 0.2,
    adam_b1: float = 0.9,
    adam_b2: float = 0.999,
    adam: tuple = _NO_MATRIX,
) -> optax.GradientTransformation:
    """Muon (Jordan 2024) for kernels, a convolution's as a matrix [h w in, out]; Adam elsewhere.

    Args:
        learning_rate: of both.
        beta: of the momentum that is orthogonalized.
        ns_steps: iterations of Newton and Schulz.
        nesterov: for both.
        weight_decay: of the kernels.
        consistent_rms: the RMS of a kernel's update at learning rate 1, near that of Adam's, so
            that one rate fits both (Liu et al. 2025); None: sqrt(max(1, out / in)) on the
            orthogonal matrix, and a learning rate to go with it.
        adam_b1, adam_b2: of Adam.
        adam: names of layers whose kernels are Adam's, too.
    """
    return contrib.muon(
        learning_rate,
        beta=beta,
        ns_steps=ns_steps,
        nesterov=nesterov,
        weight_decay=weight_decay,
        consistent_rms=consistent_rms,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        muon_weight_dimension_numbers=lambda params: _muon_axes(params, adam),
    )


def adamw(
    learning_rate: Callable,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 1e-4,
    nesterov: bool = False,
    no_decay: tuple = (),
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019).

    Args:
        learning_rate: of the update and, multiplied by it, of the decay.
        b1, b2, eps, eps_root, weight_decay, nesterov: as in optax.
        no_decay: names of parameters, or of layers, that do not decay: ('bias',) for VDM;
            ('bias', 'scale', 'log_scale') for CLIP, which spares gains and biases.
    """

    def decays(params):
        def one(path, leaf):
            return not set(_names(path)) & set(no_decay)

        return jax.tree_util.tree_map_with_path(one, params)

    return optax.adamw(
        learning_rate,
        b1=b1,
        b2=b2,
        eps=eps,
        eps_root=eps_root,
        weight_decay=weight_decay,
        nesterov=nesterov,
        mask=decays if no_decay else None,
    )


def _check_interpolation(b1: float) -> None:
    if not 0 < b1 <= 1:
        raise ValueError(f"b1 must be above 0 and at most 1, got {b1}")


def schedule_free_adamw(
    learning_rate: Callable,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    weight_lr_power: float = 2.0,
) -> optax.GradientTransformation:
    """Schedule-Free AdamW (Defazio et al. 2024); see `evaluation_params`.

    b1 takes the place of Adam's momentum. A step counts in the average by its learning rate to the
    power of `weight_lr_power`.
    """
    _check_interpolation(b1)
    return contrib.schedule_free_adamw(
        learning_rate,
        b1=b1,
        b2=b2,
        eps=eps,
        weight_decay=weight_decay,
        weight_lr_power=weight_lr_power,
    )


def schedule_free_sgd(
    learning_rate: Callable,
    b1: float = 0.9,
    weight_decay: float = 0.0,
    weight_lr_power: float = 2.0,
) -> optax.GradientTransformation:
    """Schedule-Free gradient descent (Defazio et al. 2024); see `schedule_free_adamw`."""
    _check_interpolation(b1)
    return contrib.schedule_free_sgd(
        learning_rate, b1=b1, weight_decay=weight_decay, weight_lr_power=weight_lr_power
    )


# Each is called with `learning_rate` and the literal arguments that config.optimizer.name gives.
OPTIMIZERS = {
    "adam": optax.adam,
    "adamw": adamw,
    "adafactor": optax.adafactor,
    "lion": optax.lion,
    "muon": muon,
    "schedule_free_adamw": schedule_free_adamw,
    "schedule_free_sgd": schedule_free_sgd,
    "sgd": optax.sgd,
}


def learning_rate(config: ConfigDict, steps: int) -> optax.Schedule:
    """Learning rate of each step: linear from 0 over the warm-up, then as config.decay says.

    'inverse_sqrt' counts its steps from the start of the run and not from the end of the warm-up
    (EDM2).
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.decay == "inverse_sqrt":

        def inverse_sqrt(step):
            step = jnp.asarray(step, jnp.float32)
            rise = jnp.minimum(step / warmup, 1) if warmup else 1
            return peak * rise / jnp.sqrt(jnp.maximum(step / config.decay_steps, 1))

        return inverse_sqrt
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
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    if config.forced_weight_norm:
        optimizer = forced_weight_norm(optimizer)
    return optimizer


def evaluation_params(opt_state, params):
    """The parameters to evaluate and to average: with Schedule-Free x, elsewhere `params`.

    Schedule-Free trains at y = b1 x + (1 - b1) z; its own average is x.
    """

    def is_schedule_free(node):
        return isinstance(node, contrib.ScheduleFreeState)

    nodes = jax.tree.leaves(opt_state, is_leaf=is_schedule_free)
    for state in filter(is_schedule_free, nodes):
        return contrib.schedule_free_eval_params(state, params)
    return params
