"""What a U-Net is told besides time and label: tokens, by both ways, and a vector."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.unet import make_unet
from tests.models.test_unet import SMALL, SMALL_ADM, abstract, compiled, params_of

TOKENS, CONTEXT, VECTOR = 5, 6, 7
KV = dataclasses.replace(SMALL_ADM, context="kv", context_dim=CONTEXT, embedding_dim=VECTOR)
CROSS = dataclasses.replace(
    SMALL,
    context="cross",
    context_dim=CONTEXT,
    num_heads=4,
    dropout=0.0,
)
BOTH = pytest.mark.parametrize("config", [KV, CROSS], ids=["kv", "cross"])
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]], bool)


@functools.cache
def forward(config):
    return compiled(make_unet(config).apply)


def inputs(config):
    rng = np.random.default_rng(3)
    x, tokens, vector = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for shape in [(4, 8, 8, 3), (4, TOKENS, CONTEXT), (4, VECTOR)]
    )
    condition = {"context": tokens, "context_mask": jnp.asarray(MASK)}
    if config.num_classes:
        condition["label"] = jnp.arange(4)
    if config.embedding_dim:
        condition["embedding"] = vector
    return x, jnp.array([0, 1, 500, 999]), condition


def changed(condition, name, value):
    return {**condition, name: value}


@BOTH
def test_a_masked_token_is_not_seen_and_the_others_are(config):
    apply, params = forward(config), params_of(config)
    x, time, condition = inputs(config)
    output = apply(params, x, time, condition)
    assert np.isfinite(output).all()
    tokens = condition["context"]
    for other in (jnp.flip(tokens), jnp.full_like(tokens, jnp.nan)):
        hidden = changed(condition, "context", jnp.where(MASK[..., None], tokens, other))
        np.testing.assert_array_equal(apply(params, x, time, hidden), output)
    seen = changed(condition, "context", jnp.where(MASK[..., None], -tokens, tokens))
    difference = np.abs(apply(params, x, time, seen) - output).max((1, 2, 3))
    assert (difference[:3] > 1e-3).all()
    assert difference[3] == 0


@BOTH
def test_without_a_mask_all_tokens_are_seen(config):
    params = params_of(config)
    x, time, condition = inputs(config)
    output = forward(config)(params, x, time, changed(condition, "context_mask", MASK | True))
    del condition["context_mask"]
    plain = forward(config)(params, x, time, condition)
    np.testing.assert_allclose(plain, output, rtol=1e-5, atol=1e-5)


@BOTH
def test_at_initialization_the_context_is_ignored(config):
    """The last layer of each attention starts at zero, in GLIDE and latent diffusion as here."""
    last = {"kv": "projection", "cross": "projection_out"}[config.context]
    network = make_unet(config)
    initial, random = network.init(jax.random.key(0)), params_of(config)

    def keep(path, start, other):
        names = [key.key for key in path]
        return start if names[-3:-1] == ["attention", last] else other

    params = jax.tree_util.tree_map_with_path(keep, initial, random)
    x, time, condition = inputs(config)
    output = forward(config)(params, x, time, condition)
    other = changed(condition, "context", -condition["context"])
    np.testing.assert_array_equal(forward(config)(params, x, time, other), output)
    assert np.abs(output).max() > 0.1


@functools.cache
def grads(config):
    network = make_unet(config)

    def loss(params):
        return jnp.square(network.apply(params, *inputs(config))).mean()

    return compiled(jax.grad(loss))(params_of(config))


@BOTH
def test_every_parameter_matters(config):
    leaves = jax.tree_util.tree_leaves_with_path(grads(config))
    assert not [jax.tree_util.keystr(path) for path, grad in leaves if not grad.any()]


def test_remat_changes_nothing():
    remat = grads(dataclasses.replace(CROSS, remat=True))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # noqa: E731
    jax.tree.map(close, grads(CROSS), remat)


@BOTH
def test_bfloat16_is_close_and_gives_float32(config):
    half = dataclasses.replace(config, dtype="bfloat16")
    params = params_of(config)
    output = forward(half)(params, *inputs(config))
    exact = forward(config)(params, *inputs(config))
    assert output.dtype == jnp.float32
    assert 0 < jnp.abs(output - exact).max() < 0.05 * jnp.abs(exact).max()


def test_depth_is_that_of_the_level():
    both = {"attention_resolutions": (8, 4), "transformer_depth": (1, 2)}
    params = abstract(dataclasses.replace(CROSS, **both))
    depths = {"encoder": ["0", "1"], "decoder": ["1", "0"]}
    for part, (first, second) in depths.items():
        for level, depth in ((first, 1), (second, 2)):
            attention = params[part][level]["blocks"]["0"]["attention"]
            assert len(attention["blocks"]) == depth
    assert len(params["middle"]["0"]["attention"]["blocks"]) == 2


def test_the_vector_goes_where_time_goes():
    params = params_of(KV)
    x, time, condition = inputs(KV)
    output = forward(KV)(params, x, time, condition)
    # Its layer moved into that of time gives the same for one vector.
    vector = condition["embedding"][0]
    moved = {**params, "time2": dict(params["time2"]), "embedding": dict(params["embedding"])}
    moved["time2"]["bias"] = params["time2"]["bias"] + vector @ params["embedding"]["kernel"]
    silent = changed(condition, "embedding", jnp.zeros_like(condition["embedding"]))
    np.testing.assert_allclose(
        forward(KV)(moved, x, time, silent)[0], output[0], rtol=1e-4, atol=1e-5
    )
    assert np.abs(forward(KV)(params, x, time, silent) - output).max() > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": None}, r"\['context_mask', 'embedding', 'label'\].* takes \['label', 'emb"),
        ({"embedding": None}, r"context='kv', embedding_dim=7, num_classes=3 takes"),
        ({"text": jnp.zeros(4)}, r"has \['context', 'context_mask', 'embedding', 'label', 'text'"),
        ({"context": jnp.zeros((4, 5, 3))}, r"shape \(4, 5, 3\), but context_dim=6"),
        ({"embedding": jnp.zeros((4, 3))}, r"shape \(4, 3\), but embedding_dim=7"),
    ],
)
def test_condition_must_be_what_the_config_says(change, message):
    x, time, condition = inputs(KV)
    condition = {k: v for k, v in (condition | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(make_unet(KV).apply, abstract(KV), x, time, condition)


def test_a_mask_needs_a_context():
    x, time, condition = inputs(KV)
    mask = {"context_mask": condition["context_mask"]}
    with pytest.raises(ValueError, match=r"condition has \['context_mask'\].* takes None"):
        jax.eval_shape(make_unet(SMALL).apply, abstract(SMALL), x, time, mask)
