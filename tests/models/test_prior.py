"""The networks of the priors: what may look at what, and the cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import MODELS
from models.autoregressive_prior import (
    AutoregressivePriorConfig,
    make_autoregressive_prior,
    sample_codes,
)
from models.prior import PriorConfig, make_prior

BATCH, DIM, WORDS, TEXT_DIM = 3, 6, 5, 4
CONFIG = PriorConfig(
    embedding_dim=DIM,
    text_dim=TEXT_DIM,
    context_length=WORDS,
    width=16,
    depth=2,
    num_heads=2,
)
FIELDS = {f.name: getattr(CONFIG, f.name) for f in dataclasses.fields(CONFIG)}
AR = AutoregressivePriorConfig(**FIELDS | {"components": 5, "buckets": 7})
NETWORK, AR_NETWORK = make_prior(CONFIG), make_autoregressive_prior(AR)
APPLY, AR_APPLY = jax.jit(NETWORK.apply), jax.jit(AR_NETWORK.apply)
X = np.random.RandomState(3).standard_normal((BATCH, DIM)).astype("float32")
TIME = np.array([0, 37, 999])


def larger(params):
    """Weights whose attention is far from uniform, and not yet at one token alone."""
    return jax.tree.map(lambda leaf: 1.3 * leaf, params)


PARAMS = larger(NETWORK.init(jax.random.key(0)))
AR_PARAMS = larger(AR_NETWORK.init(jax.random.key(1)))


def condition(**fields):
    random = np.random.RandomState(0)
    draw = lambda *shape: random.standard_normal(shape).astype("float32")  # noqa: E731
    mask = np.arange(WORDS) < np.array([[5], [2], [1]])
    given = {
        "text_embedding": draw(BATCH, DIM),
        "text_features": draw(BATCH, WORDS, TEXT_DIM),
        "text_mask": mask,
        "no_text": np.zeros(BATCH, bool),
    }
    return given | fields


def changed(name):
    """The condition with other numbers in one field."""
    given = condition()
    return given | {name: given[name] + 1.0}


def test_what_the_prediction_depends_on():
    before = APPLY(PARAMS, X, TIME, condition())
    assert before.shape == X.shape
    assert before.dtype == jnp.float32
    for after in (
        APPLY(PARAMS, X + 1, TIME, condition()),
        APPLY(PARAMS, X, TIME + 300, condition()),
        APPLY(PARAMS, X, TIME, changed("text_embedding")),
        APPLY(PARAMS, X, TIME, changed("text_features")),
    ):
        assert np.abs(after - before).max(1).min() > 1e-3


def test_padding_is_not_seen():
    given = condition()
    features = np.where(given["text_mask"][..., None], given["text_features"], 1e3)
    after = APPLY(PARAMS, X, TIME, given | {"text_features": features.astype("float32")})
    np.testing.assert_array_equal(after, APPLY(PARAMS, X, TIME, given))


def test_no_caption_leaves_nothing_of_it_and_all_of_the_noisy_embedding():
    """Features, embedding and length of the caption are gone; x is not (it is dropped nowhere)."""
    absent = np.ones(BATCH, bool)
    other = changed("text_embedding")
    other |= {"text_features": changed("text_features")["text_features"], "no_text": absent}
    other["text_mask"] = ~other["text_mask"] | (np.arange(WORDS) == 0)
    null = APPLY(PARAMS, X, TIME, condition(no_text=absent))
    np.testing.assert_array_equal(null, APPLY(PARAMS, X, TIME, other))
    assert np.abs(null - APPLY(PARAMS, X, TIME, condition())).max(1).min() > 1e-3
    assert np.abs(null - APPLY(PARAMS, X + 1, TIME, other)).max(1).min() > 1e-3


def test_the_null_arrays_are_learned():
    absent = np.array([True, False, False])
    loss = lambda p: jnp.square(APPLY(p, X, TIME, condition(no_text=absent))).sum()  # noqa: E731
    slope = jax.jit(jax.grad(loss))(PARAMS)["caption"]
    assert np.abs(slope["null_features"]).max() > 0
    assert np.abs(slope["null_embedding"]).max() > 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: dataclasses.replace(CONFIG, num_heads=3), "num_heads=3: must divide width=16"),
        (lambda: dataclasses.replace(CONFIG, depth=0), "depth=0: must be positive"),
        (lambda: dataclasses.replace(AR, components=7), "components=7: must be at most embedding"),
        (lambda: MODELS["prior"](widht=3), "model.widht: .* did you mean 'width'"),
        (lambda: APPLY(PARAMS, X, TIME, None), r"condition has \[\], but a prior with"),
        (
            lambda: APPLY(
                PARAMS, X, TIME, condition(text_features=np.zeros((BATCH, 4, TEXT_DIM), "float32"))
            ),
            r"text_features has \(4, 4\) .* context_length=5",
        ),
    ],
)
def test_mistakes_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


CODES = np.random.RandomState(4).randint(0, 7, (BATCH, 5))


def ar_condition(**fields):
    return condition(dot=np.array([0, 3, 6]), **fields)


def test_codes_look_back_only():
    """The logits of code k change with codes before it, the caption and the dot product."""
    logits = AR_APPLY(AR_PARAMS, CODES[:, :-1], ar_condition())
    assert logits.shape == (BATCH, 5, 7)
    other = CODES.copy()
    other[:, 2] = (other[:, 2] + 1) % 7
    after = AR_APPLY(AR_PARAMS, other[:, :-1], ar_condition())
    np.testing.assert_array_equal(after[:, :3], logits[:, :3])
    assert np.abs(after - logits)[:, 3:].max((1, 2)).min() > 1e-3
    told = AR_APPLY(AR_PARAMS, CODES[:, :-1], ar_condition() | {"dot": np.array([1, 2, 0])})
    assert np.abs(told - logits)[:, 0].max(1).min() > 1e-3


def test_no_caption_has_no_dot_product():
    absent = np.ones(BATCH, bool)
    one = AR_APPLY(AR_PARAMS, CODES[:, :-1], ar_condition(no_text=absent))
    given = ar_condition(no_text=absent) | {"dot": np.array([5, 5, 5])}
    np.testing.assert_array_equal(one, AR_APPLY(AR_PARAMS, CODES[:, :-1], given))


def test_cached_logits_are_those_of_the_whole_sequence():
    whole = AR_APPLY(AR_PARAMS, CODES[:, :-1], ar_condition())
    first = jax.jit(lambda p, c, t: AR_NETWORK.apply(p, c, t, keep=True))
    step = jax.jit(lambda p, c, cache, k: AR_NETWORK.apply(p, c, None, cache=cache, place=k))
    logits, cache = first(AR_PARAMS, CODES[:, :1], ar_condition())
    np.testing.assert_allclose(logits, whole[:, :2], atol=1e-5)
    for k in range(1, 4):
        logits, cache = step(AR_PARAMS, CODES[:, k : k + 1], cache, k)
        np.testing.assert_allclose(logits[:, 0], whole[:, k + 1], atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_samples_are_those_of_a_loop_without_cache(scale):
    keys = jax.random.split(jax.random.key(7), BATCH)
    draw = jax.jit(
        lambda p, t, k: sample_codes(AR_NETWORK, p, t, k, 5, temperature=0.7, scale=scale)
    )
    codes = np.asarray(draw(AR_PARAMS, ar_condition(), keys))
    expected = np.zeros((BATCH, 4), np.int32)
    for k in range(5):
        logits = AR_APPLY(AR_PARAMS, expected, ar_condition())[:, k]
        null = AR_APPLY(AR_PARAMS, expected, ar_condition(no_text=np.ones(BATCH, bool)))[:, k]
        logits = (null + scale * (logits - null)) / 0.7
        for row in range(BATCH):
            code = jax.random.categorical(jax.random.fold_in(keys[row], k), logits[row])
            assert codes[row, k] == code
            if k < 4:
                expected[row, k] = code


def test_a_low_temperature_takes_the_likeliest():
    keys = jax.random.split(jax.random.key(8), BATCH)
    draw = jax.jit(lambda p, t, k: sample_codes(AR_NETWORK, p, t, k, 5, temperature=1e-4))
    codes = np.asarray(draw(AR_PARAMS, ar_condition(), keys))
    logits = AR_APPLY(AR_PARAMS, codes[:, :-1], ar_condition())
    np.testing.assert_array_equal(codes, logits.argmax(-1))
