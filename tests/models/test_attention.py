import jax
import jax.numpy as jnp
import numpy as np

from models.attention import SelfAttention
from models.functional import functional

CHANNELS, HEADS = 16, 4


def network(dtype="float32"):
    return functional(
        lambda rngs: SelfAttention(
            CHANNELS,
            heads=HEADS,
            norm_groups=4,
            norm_eps=1e-5,
            init="torch",
            implementation="xla",
            dtype=dtype,
        )
    )


def random_params():
    params = network().init(jax.random.key(0))
    params["projection"]["kernel"] = jax.random.normal(jax.random.key(1), (CHANNELS, CHANNELS))
    return params


def expected(params, x):
    """The same in float64, one head and one query at a time."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x = np.asarray(x, np.float64).reshape(x.shape[0], -1, CHANNELS)
    groups = x.reshape(*x.shape[:2], 4, -1)
    mean, var = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    norm = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    qkv = norm @ params["qkv"]["kernel"] + params["qkv"]["bias"]
    out = np.zeros_like(x)
    size = CHANNELS // HEADS
    for image in range(x.shape[0]):
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            q, k, v = (qkv[image, :, i * CHANNELS :][:, part] for i in range(3))
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
