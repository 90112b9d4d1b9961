"""Loss and gradients are those of one device on every mesh; parameters lie as the rules say."""

import functools

import jax
import numpy as np
import optax
import pytest

from configs import base, networks
from models import functional
from training import mesh as meshes
from training import partition, tasks
from training.config import freeze

MESHES = ((1, 1, 1), (2, 1, 1), (1, 4, 1), (2, 2, 2), (1, 1, 4))


def unet():
    """Attention and a change of resolution; one level more would compile for longer."""
    config = base.get_config()
    config.data.update(image_size=4, channels=3)
    config.model.update(
        channels=64, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(4,), dropout=0.0
    )
    return config


def transformer():
    config = base.get_config()
    config.data.update(image_size=4, channels=3)
    config.model = networks.dit()
    config.model.update(hidden_size=128, depth=2, num_heads=4, num_classes=3, remat=True)
    config.diffusion.label_dropout = 0.1
    return config


@functools.cache
def problem(make):
    """(task, parameters none of which is zero, batch)."""
    config = make()
    task = tasks.make_task(freeze(config))
    params = jax.jit(task.init)(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    params = tree.unflatten(
        [np.asarray(p) + 0.02 * rng.standard_normal(p.shape).astype(np.float32) for p in leaves]
    )
    batch = {"image": rng.integers(0, 256, (8, 4, 4, 3), np.uint8)}
    if config.model.get("num_classes", 0):
        batch["label"] = np.arange(8, dtype=np.int32) % 3
    return task, params, batch


@functools.cache
def on_mesh(make, sizes):
    """(loss, gradients, the compiled program) with the parameters laid out over a mesh."""
    task, params, batch = problem(make)
    count = int(np.prod(sizes))
    mesh = meshes.make_mesh(*sizes, devices=jax.devices()[:count])
    placed = meshes.state_sharding(params, mesh)

    def loss(params, batch):
        with functional.read_by(partition.reader(mesh)):
            return task.loss(params, task.init_state(), batch, jax.random.key(1))[0]

    step = jax.jit(
        jax.value_and_grad(loss),
        in_shardings=(placed, meshes.batch_sharding(mesh)),
        out_shardings=(meshes.replicated(mesh), placed),
    )
    return *step(params, batch), placed


@pytest.mark.parametrize("sizes", MESHES[1:], ids=str)
@pytest.mark.parametrize("make", [unet, transformer])
def test_loss_and_gradients_are_those_of_one_device(make, sizes):
    loss, gradients, _ = on_mesh(make, MESHES[0])
    found_loss, found, placed = on_mesh(make, sizes)
    np.testing.assert_allclose(found_loss, loss, rtol=1e-5)
    norm = float(optax.tree.norm(gradients))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * norm),
        jax.device_get(found),
        jax.device_get(gradients),
    )
    axes = {axis for s in jax.tree.leaves(placed) for axis in s.spec if axis}
    assert axes == {name for name, size in zip(meshes.AXES[1:], sizes[1:], strict=True) if size > 1}
    same = jax.tree.map(lambda g, s: g.sharding.is_equivalent_to(s, g.ndim), found, placed)
    assert all(jax.tree.leaves(same))
