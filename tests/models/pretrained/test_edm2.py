"""The network, its reader and forced normalization against NVlabs/edm2."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models.edm2_unet import EDM2UNetConfig, make_edm2_unet
from models.magnitude_preserving import is_kernel, normalized_kernels
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
        "num_res_blocks": 1,
        "attention_resolutions": (4,),
        "head_channels": 8,
        "num_classes": 0,
    }
    return EDM2UNetConfig(**{"in_channels": 3, "out_channels": 3} | wide | fields)


LABELS = config(num_classes=5, null_class=True, **edm2_weights.NETWORK)
UNEVEN = config(**edm2_weights.NETWORK)
TINY = {"image_size": 4, "channels": 4, "channel_mult": (1, 2), "head_channels": 4}
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
    assert np.abs(output - expected).max() < 1e-5 * np.abs(expected).max()


def trainer(optimizer):
    """Function of initial parameters: those after the steps of training of the golden file."""
    network = make_edm2_unet(TRAINING)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def update(params, state, x, target):
        def loss(params):
            raw = network.apply(params, x, *inputs(TRAINING)[1:])
            return jnp.square(raw - target).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    def train(params):
        state = optimizer.init(params)
        for step in range(edm2_weights.STEPS):
            images = edm2_weights.batch(step, len(edm2_weights.TIMES), 3, TRAINING.image_size)
            params, state = update(params, state, *(a.transpose(0, 2, 3, 1) for a in images))
        return params

    return train


def magnitudes(params):
    """RMS of the weights of each output channel of each kernel."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    kernels = [np.asarray(leaf, np.float64) for path, leaf in leaves if is_kernel(path, leaf)]
    return np.concatenate([np.sqrt(np.square(k).mean(tuple(range(k.ndim - 1)))) for k in kernels])


def test_three_steps_of_adam():
    initial = edm2_unet_from_nvlabs(tensors("training", even=False), TRAINING)
    initial = jax.tree.map(jnp.asarray, initial)
    adam = optax.adam(edm2_weights.RATE, *edm2_weights.BETAS)
    forced = trainer(forced_weight_norm(adam))
    normalize = jax.jit(normalized_kernels)
    trained = {n.removeprefix("trained/"): VALUES[n] for n in VALUES if n.startswith("trained/")}
    expected = jax.tree.map(jnp.asarray, edm2_unet_from_nvlabs(trained, TRAINING))

    def distance(params):
        """Largest difference of weights, which are of size one when normalized."""
        far = jax.tree.map(lambda a, b: np.abs(a - b).max(), normalize(params), expected)
        return max(jax.tree.leaves(far))

    params = forced(normalize(initial))
    np.testing.assert_allclose(magnitudes(params), magnitudes(expected), rtol=1e-6)
    # Adam magnifies the rounding of small gradients: all but two leaves are within 2e-6.
    assert distance(params) < 3e-5
    # Neither part could be left out.
    assert distance(forced(initial)) > 1e-2
    assert distance(trainer(adam)(normalize(initial))) > 1e-3


def test_the_uncertainty_head_is_left_and_nothing_else():
    weights = tensors("uneven", True)
    assert "logvar_linear.weight" in weights
    edm2_unet_from_nvlabs(weights, UNEVEN)
    with pytest.raises(ValueError, match=r"tensor unet\.extra .* has no place"):
        edm2_unet_from_nvlabs(weights | {"unet.extra": np.ones(2)}, UNEVEN)
