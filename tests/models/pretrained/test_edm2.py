"""The network, its reader and forced normalization against NVlabs/edm2."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models.edm2_unet import EDM2UNetConfig, make_edm2_unet
from models.magnitude_preserving import normalized_kernels
from models.pretrained.edm2 import edm2_unet_from_nvlabs
from tests.golden.models import edm2_weights, generated
from training.forced_norm import forced_weight_norm

GOLDEN = pathlib.Path("tests/golden/models")
VALUES = np.load(GOLDEN / "edm2.npz")
SHAPES = json.loads((GOLDEN / "edm2.json").read_text())


def config(**fields):
    wide = {
        "image_size": 8,
        "channels": 16,
        "channel_mult": (1, 2, 3),
        "num_blocks": 1,
        "attention_resolutions": (4,),
        "channels_per_head": 8,
        "num_classes": 0,
    }
    return EDM2UNetConfig(**{"in_channels": 3, "out_channels": 3} | wide | fields)


LABELS = config(num_classes=5, null_class=True, **edm2_weights.NETWORK)
UNEVEN = config(**edm2_weights.NETWORK)
TINY = {"image_size": 4, "channels": 4, "channel_mult": (1, 2), "channels_per_head": 4}
TRAINING = config(num_classes=5, null_class=True, attention_resolutions=(), **TINY)


def tensors(case, even):
    return {name: edm2_weights.tensor(name, shape, even) for name, shape in SHAPES[case].items()}


def inputs(settings):
    x = generated.images(len(edm2_weights.TIMES), 3, settings.image_size).transpose(0, 2, 3, 1)
    condition = {"label": edm2_weights.LABELS} if settings.num_classes else None
    return jax.tree.map(jnp.asarray, (x, edm2_weights.TIMES, condition))


@pytest.mark.parametrize(
    ("case", "settings", "even"), [("labels", LABELS, True), ("uneven", UNEVEN, False)]
)
def test_forward(case, settings, even):
    params = edm2_unet_from_nvlabs(tensors(case, even), settings)
    output = jax.jit(make_edm2_unet(settings).apply)(params, *inputs(settings))
    expected = VALUES[case].transpose(0, 2, 3, 1)
    print(np.abs(output - expected).max() / np.abs(expected).max())
    assert np.abs(output - expected).max() < 1e-5 * np.abs(expected).max()


def distance(params, others):
    """Largest difference over all leaves, each over the RMS of its leaf."""
    far = lambda a, b: np.abs(np.asarray(a) - b).max() / np.sqrt(np.square(b).mean())  # noqa: E731
    return max(jax.tree.leaves(jax.tree.map(far, params, others)))


def test_three_steps_of_adam():
    network = make_edm2_unet(TRAINING)
    params = normalized_kernels(edm2_unet_from_nvlabs(tensors("training", False), TRAINING))
    optimizer = forced_weight_norm(optax.adam(edm2_weights.RATE, *edm2_weights.BETAS))

    @jax.jit
    def update(params, state, x, target):
        def loss(params):
            raw = network.apply(params, x, *inputs(TRAINING)[1:])
            return jnp.square(raw - target).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    start, state = params, optimizer.init(params)
    for step in range(edm2_weights.STEPS):
        images = edm2_weights.batch(step, len(edm2_weights.TIMES), 3, TRAINING.image_size)
        params, state = update(params, state, *(a.transpose(0, 2, 3, 1) for a in images))
    trained = {n.removeprefix("trained/"): VALUES[n] for n in VALUES if n.startswith("trained/")}
    expected = edm2_unet_from_nvlabs(trained, TRAINING)
    print(distance(params, expected), distance(start, expected))
    assert distance(params, expected) < 1e-5
    assert distance(start, expected) > 0.02


def test_the_uncertainty_head_is_left_and_nothing_else():
    weights = tensors("uneven", True)
    assert "logvar_linear.weight" in weights
    edm2_unet_from_nvlabs(weights, UNEVEN)
    with pytest.raises(ValueError, match=r"tensor unet\.extra .* has no place"):
        edm2_unet_from_nvlabs(weights | {"unet.extra": np.ones(2)}, UNEVEN)
