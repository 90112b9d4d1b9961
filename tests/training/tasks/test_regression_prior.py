import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import networks
from tests.training.tasks.descent import descend
from training import command_line, tasks
from training.components import ConfigError
from training.tasks.regression_prior import text_as_image


def make(task, name="linear_prior", accumulate=1, **model):
    config = command_line.read("configs/prior_paper.py:smoke")
    config.task = task
    config.train.accumulate = accumulate
    config.model = networks.FIELDS[name]()
    config.model.update(embedding_dim=8, **model)
    return tasks.make_task(config)


LINEAR = make("regression_prior(scale=1.0, normalize=False)")
PAIRS = LINEAR.embeddings.read(2048)
KEY = jax.random.key(0)


def trained(task, steps, rate):
    """Parameters and losses after Adam on the whole of the pairs."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    return descend(task, task.init(KEY), PAIRS, [KEY] * steps, optimizer)


def test_a_batch_has_embeddings_alone():
    assert set(LINEAR.batch_spec(3)) == {"image_embedding", "text_embedding"}


def test_the_linear_prior_becomes_least_squares():
    """Which is the posterior's mean here: the loss ends at the variance that is left, 0.25."""
    params, losses = trained(LINEAR, 400, 0.05)
    text, image = PAIRS["text_embedding"], PAIRS["image_embedding"]
    design = np.concatenate([text, np.ones((2048, 1))], axis=1)
    solution = np.linalg.lstsq(design, image, rcond=None)[0]
    np.testing.assert_allclose(params["out"]["kernel"], solution[:-1], atol=2e-3)
    np.testing.assert_allclose(params["out"]["bias"], solution[-1], atol=2e-3)
    assert losses[-1] == pytest.approx(0.25, rel=0.05)
    drawn = LINEAR.sample(params, PAIRS, KEY)
    np.testing.assert_allclose(drawn, design @ solution, atol=2e-2)


def test_the_mlp_learns_the_map():
    task = make("regression_prior(scale=1.0, normalize=False)", "mlp_prior", width=32, depth=2)
    _, losses = trained(task, 300, 5e-3)
    assert losses[0] > 1.0
    assert losses[-1] < 0.35


def test_the_contrastive_loss_by_hand():
    task = make("regression_prior(contrastive=0.2, temperature=0.1)")
    params = task.init(KEY)
    batch = {name: value[:6] for name, value in PAIRS.items()}
    loss, (metrics, _) = task.loss(params, {}, batch, KEY)
    condition = task.condition(batch)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    predicted = np.asarray(task.network.apply(params, condition))
    logits = unit(predicted) @ unit(batch["text_embedding"]).T / 0.1
    each = np.log(np.exp(logits).sum(1)) - np.diag(logits)
    assert metrics["contrastive"] == pytest.approx(each.mean(), rel=1e-4)
    assert loss == pytest.approx(float(metrics["mse"]) + 0.2 * each.mean(), rel=1e-4)


def test_samples_are_of_unit_length_where_embeddings_are_normalized():
    task = make("regression_prior")
    drawn = task.sample(task.init(KEY), PAIRS, KEY)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1.0, rtol=1e-5)


def test_the_text_itself():
    drawn = text_as_image(None, PAIRS, KEY)
    text = PAIRS["text_embedding"]
    expected = text / np.linalg.norm(text, axis=1, keepdims=True)
    np.testing.assert_allclose(drawn, expected, rtol=1e-5)
    assert isinstance(drawn, jnp.ndarray)


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="contrastive must be 0 or more"):
        make("regression_prior(contrastive=-1.0)")


def test_microbatches_would_have_fewer_texts_to_tell_apart():
    make("regression_prior", accumulate=2)
    with pytest.raises(ConfigError, match=r"config\.train\.accumulate = 2: must be 1"):
        make("regression_prior(contrastive=0.2)", accumulate=2)
