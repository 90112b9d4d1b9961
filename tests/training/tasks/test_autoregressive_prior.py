import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models.autoregressive_prior import DOT
from models.caption import NO_TEXT
from tests.training.tasks.descent import descend
from training import command_line, tasks
from training.components import ConfigError


def make(task="autoregressive_prior(fit_count=1000)", **fields):
    config = command_line.read("configs/prior_paper.py:autoregressive_smoke")
    config.task = task
    for name, value in fields.items():
        section, field = name.split("__")
        config[section][field] = value
    return tasks.make_task(config)


TASK = make()
PAIRS = TASK.embeddings.read(16)
KEY = jax.random.key(0)
PARAMS = TASK.init(KEY)


def test_the_loss_is_the_cross_entropy_of_the_codes():
    """Logits of zero cost log(buckets) nats a code."""
    silent = PARAMS | {"out": jax.tree.map(jnp.zeros_like, PARAMS["out"])}
    loss, (metrics, _) = jax.jit(TASK.loss)(silent, {}, PAIRS, KEY)
    assert loss == pytest.approx(np.log(32), rel=1e-5)
    codes = TASK.quantizer.encode(TASK.to_model(jnp.asarray(PAIRS["image_embedding"])))
    assert metrics["accuracy"] == pytest.approx(np.mean(np.asarray(codes) == 0), abs=1e-6)


def test_dot_products_are_asked_from_the_top_half_alone():
    codes = np.asarray(TASK.dot_codes(jax.random.split(KEY, 4000)))
    assert set(codes) == set(range(16, 32))
    highest = make("autoregressive_prior(fit_count=1000, top=0.05)")
    assert set(np.asarray(highest.dot_codes(jax.random.split(KEY, 400)))) == {30, 31}


def test_a_sample_depends_on_its_own_caption_and_number():
    whole = TASK.sample(PARAMS, PAIRS, KEY)
    which = np.array([7, 2], np.int32)
    part = TASK.sample(PARAMS, {k: v[which] for k, v in PAIRS.items()}, KEY, which)
    np.testing.assert_allclose(part, whole[which], atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1.0, rtol=1e-5)


def test_it_learns_a_map_by_heart():
    """Sixteen pairs, components all: codes come back, and with them the embeddings.

    What is drawn is within the quantizer's error of the true embedding, and logits without the
    caption are far from it.
    """
    task = make(
        "autoregressive_prior(fit_count=4000, scale=1.0, normalize=False, caption_dropout=0.0)",
        model__components=8,
        train__batch_size=16,
    )
    params, _ = descend(task, task.init(KEY), PAIRS, [KEY] * 250, optax.adam(3e-3))
    loss, (metrics, _) = task.loss(params, {}, PAIRS, KEY)
    assert loss < 0.05
    assert metrics["accuracy"] > 0.99
    # Asked with each pair's own dot product, it draws the codes of the embedding.
    quantizer, image = task.quantizer, jnp.asarray(PAIRS["image_embedding"])
    told = task.condition(PAIRS)
    dots = quantizer.encode_dot(jnp.sum(image * told["text_embedding"], axis=-1))
    task.dot_codes = lambda keys: dots
    drawn = np.asarray(task.sample(params, PAIRS, KEY))
    bound = np.sqrt(np.square(0.5 * quantizer.width).sum())
    errors = np.linalg.norm(drawn - PAIRS["image_embedding"], axis=1)
    assert np.median(errors) <= bound * (1 + 1e-5)
    codes = quantizer.encode(image)
    absent = told | {DOT: dots, NO_TEXT: jnp.ones(16, bool)}
    logits = task.network.apply(params, codes[:, :-1], absent)
    without = optax.softmax_cross_entropy_with_integer_labels(logits, codes).mean()
    assert without > 1.0


def test_guidance_is_that_of_the_config():
    guided = make(sample__guidance=("classifier_free(scale=4.0)",))
    one, other = guided.sample(PARAMS, PAIRS, KEY), TASK.sample(PARAMS, PAIRS, KEY)
    assert np.abs(one - other).max() > 1e-2
    with pytest.raises(ConfigError, match=r"of logits there is classifier_free"):
        make(sample__guidance=("adaptive_projected(scale=4.0)",)).sample(PARAMS, PAIRS, KEY)


def test_a_quantizer_from_a_file(tmp_path):
    path = tmp_path / "quantizer.npz"
    TASK.quantizer.save(path)
    task = f"autoregressive_prior(quantizer={str(path)!r})"
    for stored, fitted in zip(make(task).quantizer, TASK.quantizer, strict=True):
        np.testing.assert_array_equal(stored, fitted)
    with pytest.raises(ConfigError, match=r"\(8, 6, 32\), and config.model \(8, 5, 32\)"):
        _ = make(task, model__components=5).quantizer


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("autoregressive_prior(top=0.0)", r"top must be in \(0, 1\]"),
        ("autoregressive_prior(temperature=0.0)", "temperature above 0"),
        ("autoregressive_prior(scale=-1.0)", "scale must be 0"),
    ],
)
def test_mistakes_are_named(task, message):
    with pytest.raises(ConfigError, match=message):
        make(task)


def test_too_few_pairs_are_named():
    with pytest.raises(ConfigError, match="8 pairs are too few for 32 buckets"):
        _ = make("autoregressive_prior(fit_count=8)").quantizer
