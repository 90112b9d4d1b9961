import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.attention import Context, SelfAttention
from models.functional import functional

CHANNELS, HEADS = 16, 4
TOKENS, CONTEXT = 5, 6


def network(dtype="float32", context_dim=0):
    return functional(
        lambda rngs: SelfAttention(
            CHANNELS,
            heads=HEADS,
            norm_groups=4,
            norm_eps=1e-5,
            init="torch",
            implementation="xla",
            dtype=dtype,
            context_dim=context_dim,
        )
    )


@functools.cache
def random_params(context_dim=0):
    params = network(context_dim=context_dim).init(jax.random.key(0))
    params["projection"]["kernel"] = jax.random.normal(jax.random.key(1), (CHANNELS, CHANNELS))
    return params


def expected(params, x, tokens=None):
    """The same in float64, one head and one query at a time.

    tokens: for each image those that it may see.
    """
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x = np.asarray(x, np.float64).reshape(x.shape[0], -1, CHANNELS)
    groups = x.reshape(*x.shape[:2], 4, -1)
    mean, var = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    norm = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    qkv = norm @ params["qkv"]["kernel"] + params["qkv"]["bias"]
    out = np.zeros_like(x)
    size = CHANNELS // HEADS
    for image in range(x.shape[0]):
        kv = np.zeros((0, 2 * CHANNELS))
        if tokens is not None:
            kv = tokens[image] @ params["context"]["kernel"] + params["context"]["bias"]
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            q, k, v = (qkv[image, :, i * CHANNELS :][:, part] for i in range(3))
            k = np.concatenate([kv[:, :CHANNELS][:, part], k])
            v = np.concatenate([kv[:, CHANNELS:][:, part], v])
            for position in range(x.shape[1]):
                weight = np.exp(k @ q[position] / np.sqrt(size))
                out[image, position, part] = weight @ v / weight.sum()
    return x + out @ params["projection"]["kernel"]


def test_against_numpy():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, CHANNELS))
    params = random_params()
    output = np.asarray(jax.jit(network().apply)(params, x)).reshape(2, 15, CHANNELS)
    np.testing.assert_allclose(output, expected(params, x), atol=2e-5)


def test_bfloat16_is_close():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, CHANNELS)).astype(jnp.bfloat16)
    params = random_params()
    output = jax.jit(network("bfloat16").apply)(params, x)
    assert output.dtype == jnp.bfloat16
    want = expected(params, x.astype(jnp.float32))
    got = np.asarray(output, np.float64).reshape(2, 15, CHANNELS)
    assert np.abs(got - want).max() < 0.02 * np.abs(want).max()


apply_with_context = jax.jit(network(context_dim=CONTEXT).apply)
X = np.random.default_rng(0).standard_normal((2, 2, 3, CHANNELS)).astype(np.float32)
SEEN = np.random.default_rng(1).standard_normal((2, TOKENS, CONTEXT)).astype(np.float32)


def test_context_against_numpy():
    output = apply_with_context(random_params(CONTEXT), X, Context(SEEN))
    want = expected(random_params(CONTEXT), X, SEEN)
    np.testing.assert_allclose(np.reshape(output, want.shape), want, atol=2e-5)
    assert np.abs(want - expected(random_params(CONTEXT), X)).max() > 0.1


@given(mask=arrays(bool, (2, TOKENS), elements=st.booleans()))
def test_a_masked_token_is_as_none(mask):
    output = apply_with_context(random_params(CONTEXT), X, Context(SEEN, mask))
    want = expected(random_params(CONTEXT), X, [SEEN[i][mask[i]] for i in range(2)])
    np.testing.assert_allclose(np.reshape(output, want.shape), want, atol=2e-5)


def test_at_initialization_the_context_does_nothing():
    params = network(context_dim=CONTEXT).init(jax.random.key(0))
    np.testing.assert_array_equal(apply_with_context(params, X, Context(SEEN)), X)
