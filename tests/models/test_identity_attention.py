"""Self-attention replaced by identity for some rows, for perturbed-attention guidance."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.dit import DiTConfig, make_dit
from models.unet import UNetConfig, make_unet

UNET = UNetConfig(
    in_channels=1,
    out_channels=1,
    image_size=8,
    channels=8,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(8,),
    norm_groups=4,
    num_heads=2,
    dropout=0.0,
)
CROSS = dataclasses.replace(UNET, context="cross", context_dim=4)
KV = dataclasses.replace(UNET, context="kv", context_dim=4)
DIT = DiTConfig(
    in_channels=1,
    out_channels=1,
    image_size=8,
    patch_size=4,
    hidden_size=8,
    depth=3,
    num_heads=2,
    num_classes=0,
    null_class=False,
)
NETWORKS = {
    "unet": (make_unet(UNET), {}, (8, 4)),
    "cross": (make_unet(CROSS), {"context": jnp.ones((3, 2, 4))}, (8, 4)),
    "kv": (make_unet(KV), {"context": jnp.ones((3, 2, 4))}, (8, 4)),
    "dit": (make_dit(DIT), {}, (0, 1, 2)),
}
X = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
TIME = jnp.array([1.0, 20.0, 900.0])


def filled(network):
    """Parameters of which none is zero, so that every layer has a say."""
    params = jax.eval_shape(network.init, jax.random.key(0))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: np.float32(0.3 * rng.standard_normal(p.shape)), params)


@pytest.mark.parametrize("kind", NETWORKS)
def test_flagged_rows_change_and_no_others(kind):
    network, condition, places = NETWORKS[kind]
    assert network.attention == places
    params, rows = filled(network), np.array([True, False, True])
    run = jax.jit(network.apply)

    def at(flags):
        return np.asarray(run(params, X, TIME, condition | {"identity_attention": flags}))

    plain = np.asarray(run(params, X, TIME, condition or None))
    np.testing.assert_allclose(at({places[0]: ~rows & False}), plain, rtol=1e-5, atol=1e-6)
    seen = [at({place: rows}) for place in places]
    for out in seen:
        np.testing.assert_allclose(out[1], plain[1], rtol=1e-5, atol=1e-6)
        assert np.abs(out[[0, 2]] - plain[[0, 2]]).max((1, 2, 3)).min() > 1e-4
    assert not np.allclose(seen[0], seen[1])


def test_identity_is_attention_to_oneself():
    """One position has nobody else: there both are the same. Values pass the projection."""
    config = dataclasses.replace(
        UNET, image_size=2, channel_mult=(1, 1), attention_resolutions=(1,)
    )
    network = make_unet(config)
    params, x, run = filled(network), X[:, :2, :2], jax.jit(network.apply)
    on = {"identity_attention": {1: jnp.ones(3, bool)}}
    np.testing.assert_allclose(run(params, x, TIME, on), run(params, x, TIME), rtol=1e-5, atol=1e-6)


def test_places_without_attention_are_refused():
    flags = {"identity_attention": {16: jnp.ones(3, bool)}}
    unet, dit = NETWORKS["unet"][0], NETWORKS["dit"][0]
    with pytest.raises(ValueError, match=r"resolutions \[16\].*has attention at \(8, 4\)"):
        unet.apply(filled(unet), X, TIME, flags)
    with pytest.raises(ValueError, match=r"blocks \[16\].*has 0 to 2"):
        dit.apply(filled(dit), X, TIME, flags)
