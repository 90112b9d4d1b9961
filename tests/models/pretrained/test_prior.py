"""The diffusion prior and its reader against diffusers' `PriorTransformer`."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from models.functional import count_parameters
from models.pretrained.prior import prior_from_diffusers
from models.prior import PriorConfig, make_prior
from tests.golden.models import generated

GOLDEN = pathlib.Path("tests/golden/models")
CONFIG = PriorConfig(
    embedding_dim=12,
    text_dim=12,
    context_length=5,
    width=32,
    depth=3,
    num_heads=4,
    null_text=False,
)


def tensors():
    shapes = json.loads((GOLDEN / "prior.json").read_text())
    return {name: generated.tensor(name, shape) for name, shape in shapes.items()}


def test_forward():
    golden = np.load(GOLDEN / "prior.npz")
    told, expected = golden["told"], golden["output"]
    condition = {
        "text_embedding": told[:, 1],
        "text_features": told[:, 2:],
        "text_mask": golden["mask"],
    }
    params, _ = prior_from_diffusers(tensors(), CONFIG)
    apply = jax.jit(make_prior(CONFIG).apply)
    output = apply(params, told[:, 0], np.array(generated.TIMES), condition)
    assert np.abs(output - expected).max() < 1e-5 * np.abs(expected).max()


def test_mean_and_std_are_kept():
    stored = tensors()
    _, space = prior_from_diffusers(stored, CONFIG)
    np.testing.assert_array_equal(space.mean, stored["clip_mean"][0])
    np.testing.assert_array_equal(space.std, stored["clip_std"][0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 2}, r"tensor transformer_blocks\.2\.attn1\.to_q\.weight .* has no place"),
        ({"depth": 4}, r"no tensor blocks\.attn1\.to_q\.weight"),
        ({"context_length": 6}, r"prior\.positional_embedding has \(9, 32\)"),
        ({"null_text": True}, "null_text=True: must be False for published priors"),
    ],
)
def test_another_network_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        prior_from_diffusers(tensors(), dataclasses.replace(CONFIG, **fields))


def test_a_file_that_lacks_the_standardization_is_refused():
    stored = {name: value for name, value in tensors().items() if name != "clip_std"}
    with pytest.raises(ValueError, match="no tensor clip_std"):
        prior_from_diffusers(stored, CONFIG)


@pytest.mark.parametrize(("dim", "millions"), [(768, 1022.03), (1280, 1026.23)])
def test_published_sizes(dim, millions):
    """Karlo's and Kandinsky 2.2's, counted from diffusers' class with its mean and std."""
    config = PriorConfig(
        embedding_dim=dim, text_dim=dim, context_length=77, depth=20, null_text=False
    )
    shapes = jax.eval_shape(make_prior(config).init, jax.random.key(0))
    assert (count_parameters(shapes) + 2 * dim) / 1e6 == pytest.approx(millions, abs=0.005)
