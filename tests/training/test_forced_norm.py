import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from models.magnitude_preserving import normalized_kernel, normalized_kernels
from training.forced_norm import forced_weight_norm


def tree(seed):
    """Parameters of every kind: kernels of two to four axes, and what must not be touched."""
    shapes = {
        "conv": {"kernel": (3, 3, 16, 32), "bias": (32,)},
        "dense": {"kernel": (64, 32), "table": (8, 4)},
        "odd": {"kernel": (4,)},
        "gain": (),
    }
    leaves, treedef = jax.tree.flatten(shapes, is_leaf=lambda node: isinstance(node, tuple))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return treedef.unflatten(3 * jax.random.normal(k, s) for k, s in zip(keys, leaves, strict=True))


def run(optimizer, params, steps=3):
    @jax.jit
    def update(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for step in range(steps):
        params, state = update(params, state, tree(step + 1))
    return params, state


def test_each_output_channel_has_the_magnitude_of_edm2():
    params, _ = run(forced_weight_norm(optax.adam(0.1)), tree(0))
    for name in ("conv", "dense"):
        kernel = np.asarray(params[name]["kernel"], np.float64)
        magnitude = np.sqrt(np.square(kernel).mean(tuple(range(kernel.ndim - 1))))
        # m / (m + eps) for an m of 3 before the first step and near 1 before the others.
        np.testing.assert_allclose(magnitude, 1 / (1 + 1e-4), rtol=3e-6)


def test_one_step_is_the_inner_step_normalized():
    params = tree(0)
    inner, _ = run(optax.sgd(0.1, momentum=0.9), params, steps=1)
    forced, _ = run(forced_weight_norm(optax.sgd(0.1, momentum=0.9)), params, steps=1)
    for name in ("conv", "dense"):
        expected = normalized_kernel(inner[name].pop("kernel"))
        np.testing.assert_allclose(forced[name].pop("kernel"), expected, rtol=0, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, forced, inner)


def test_zero_updates_normalize():
    params = tree(0)
    forced, _ = run(forced_weight_norm(optax.sgd(0.0)), params, steps=1)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)  # noqa: E731
    jax.tree.map(close, forced, normalized_kernels(params))


def test_state_is_that_of_the_inner_optimizer():
    _, inner = run(optax.adam(0.1), tree(0), steps=1)
    _, forced = run(forced_weight_norm(optax.adam(0.1)), tree(0), steps=1)
    jax.tree.map(np.testing.assert_array_equal, forced, inner)


def test_sharded_parameters_under_jit():
    optimizer = forced_weight_norm(optax.adam(0.1))
    mesh = Mesh(np.array(jax.devices()), "fsdp")

    def place(leaf):
        # Over the inputs, which the norm is taken over; what has one axis is on every device.
        axes = [None] * (leaf.ndim - 2) + ["fsdp"] if leaf.ndim >= 2 and leaf.size > 100 else []
        return NamedSharding(mesh, PartitionSpec(*axes))

    params = tree(0)
    shardings = jax.tree.map(place, params)
    assert shardings["dense"]["kernel"].spec == PartitionSpec("fsdp")

    @jax.jit
    def step(params, grads):
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    sharded = step(jax.device_put(params, shardings), jax.device_put(tree(1), shardings))
    plain = step(params, tree(1))
    assert sharded["dense"]["kernel"].sharding.spec == PartitionSpec("fsdp")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), sharded, plain)


def test_params_are_needed():
    optimizer = forced_weight_norm(optax.sgd(0.1))
    with pytest.raises(ValueError, match="needs params"):
        optimizer.update(tree(1), optimizer.init(tree(0)))
