import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import Context
from models.functional import functional
from models.spatial_transformer import LayerNorm, SpatialTransformer

CHANNELS, TOKENS, CONTEXT = 16, 5, 6


def network(dtype="float32"):
    return functional(
        lambda rngs: SpatialTransformer(
            CHANNELS,
            depth=2,
            heads=4,
            context_dim=CONTEXT,
            norm_groups=4,
            init="torch",
            implementation="xla",
            dtype=dtype,
        )
    )


apply = jax.jit(network().apply)
X = np.random.default_rng(0).standard_normal((2, 2, 3, CHANNELS)).astype(np.float32)
SEEN = np.random.default_rng(1).standard_normal((2, TOKENS, CONTEXT)).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    """Without the zeros of the initial draw."""
    params = network().init(jax.random.key(0))
    params["projection_out"]["kernel"] = jax.random.normal(jax.random.key(1), (CHANNELS, CHANNELS))
    return params


def test_at_initialization_it_is_the_identity():
    initial = network().init(jax.random.key(0))
    np.testing.assert_array_equal(apply(initial, X, Context(SEEN)), X)


def test_a_masked_token_is_as_none(params):
    mask = np.array([[True] * 3 + [False] * 2] * 2)
    fewer = apply(params, X, Context(SEEN[:, :3]))
    seen = np.where(mask[..., None], SEEN, 0)
    np.testing.assert_allclose(apply(params, X, Context(seen, mask)), fewer, atol=1e-5)
    assert np.abs(apply(params, X, Context(SEEN)) - fewer).max() > 0.01


def test_without_a_token_to_see_nothing_is_added(params):
    """The values of cross-attention have no bias, so those of zero tokens are zero."""
    blind = Context(np.zeros_like(SEEN), np.zeros((2, TOKENS), bool))
    output = apply(params, X, blind)
    assert np.isfinite(output).all()
    without = dict(params, blocks=jax.tree.map(lambda a: a, params["blocks"]))
    for block in without["blocks"].values():
        kernel = block["attention2"]["kv"]["kernel"]
        block["attention2"]["kv"]["kernel"] = kernel.at[:, CHANNELS:].set(0)
    expected = apply(without, X, Context(SEEN))
    np.testing.assert_allclose(output, expected, atol=1e-6)


def test_norm_of_a_weak_signal(params):
    """With blocks that add nothing what is left is x + norm(x), where eps 1e-6 is seen."""
    silent = jax.tree.map(jnp.zeros_like, params)
    silent["norm"]["scale"] = jnp.ones(CHANNELS)
    silent["projection_in"]["kernel"] = silent["projection_out"]["kernel"] = jnp.eye(CHANNELS)
    x = 1e-3 * X
    groups = x.astype(np.float64).reshape(2, 6, 4, 4)
    mean, variance = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    normal = ((groups - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape)
    np.testing.assert_allclose(apply(silent, x, Context(SEEN)), x + normal, atol=1e-5)


def test_bfloat16_is_close(params):
    half = jax.jit(network("bfloat16").apply)(params, jnp.asarray(X, jnp.bfloat16), Context(SEEN))
    assert half.dtype == jnp.bfloat16
    exact = apply(params, X, Context(SEEN))
    assert np.abs(half.astype(jnp.float32) - exact).max() < 0.03 * np.abs(exact).max()


def test_layer_norm_where_the_mean_dwarfs_the_deviation():
    x = 1000 + np.random.default_rng(2).standard_normal((2, 3, 8))
    norm = functional(lambda rngs: LayerNorm(8))
    scale, bias = np.arange(8.0, dtype=np.float32), np.ones(8, np.float32)
    output = norm.apply({"scale": scale, "bias": bias}, jnp.asarray(x, jnp.float32))
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(output, normal * scale + bias, atol=5e-3)
