import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import shapes_clip
from training import run, tasks
from training.components import ConfigError
from training.config import freeze, validate
from training.tasks.clip import contrastive_loss, normalize, sigmoid_loss

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def make_config(variant="", **changes):
    config = shapes_clip.get_config(variant)
    config.model.update(image_width=16, image_depth=1, text_width=16, text_depth=1)
    config.model.update(embedding_dim=8, image_heads=2, text_heads=2, vocab_size=32)
    config.model.update(context_length=6)
    config.data.update(source="digits", image_size=8, channels=1, context=6)
    config.train.update(steps=4, batch_size=16)
    config.optimizer.update(warmup_steps=0, decay="constant", clip_norm=0.0)
    for field, value in changes.items():
        section, name = field.split("__")
        config[section][name] = value
    validate(config)
    return freeze(config)


CONFIG = make_config()
TASK = tasks.make_task(CONFIG)
PARAMS = jax.jit(TASK.init)(KEY)
BATCH = {
    "image": RNG.integers(0, 256, (16, 8, 8, 1), np.uint8),
    "tokens": RNG.integers(0, 32, (16, 6), np.int32),
}


def test_is_a_task():
    assert isinstance(TASK, tasks.Task)
    spec = TASK.batch_spec(4)
    assert spec["tokens"].shape == (4, 6)
    assert spec["image"].dtype == jnp.uint8


def test_losses_against_their_formulas():
    logits = RNG.standard_normal((5, 5))
    log_softmax = [x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (logits, logits.T)]
    expected = -sum(np.trace(x) / 5 for x in log_softmax) / 2
    np.testing.assert_allclose(contrastive_loss(jnp.float32(logits)), expected, rtol=1e-5)
    # Zhai et al. 2023, algorithm 1.
    labels = 2 * np.eye(5) - np.ones((5, 5))
    expected = np.log1p(np.exp(-labels * logits)).sum() / 5
    np.testing.assert_allclose(sigmoid_loss(jnp.float32(logits)), expected, rtol=1e-5)


@pytest.mark.parametrize("variant", ["", "sigmoid"])
def test_loss_and_metrics_are_of_normalized_embeddings(variant):
    task = tasks.make_task(make_config(variant))
    params = jax.jit(task.init)(KEY)
    loss, (metrics, state) = jax.jit(task.loss)(params, {}, BATCH, KEY)
    images = jnp.float32(BATCH["image"] / 127.5 - 1.0)
    out = task.network.apply(params, images, jnp.asarray(BATCH["tokens"]))
    image, text = (
        np.float64(x) / np.linalg.norm(x, axis=1, keepdims=True)
        for x in (out.image_embedding, out.text_embedding)
    )
    logits = float(out.scale) * image @ text.T
    if variant:
        logits -= 10.0
    compare = sigmoid_loss if variant else contrastive_loss
    np.testing.assert_allclose(loss, compare(jnp.float32(logits)), rtol=1e-3)
    own = np.arange(16)
    np.testing.assert_allclose(metrics["accuracy_image"], (logits.argmax(1) == own).mean())
    np.testing.assert_allclose(metrics["accuracy_text"], (logits.argmax(0) == own).mean())
    np.testing.assert_allclose(metrics["logit_scale"], out.scale)
    assert state == {}


@pytest.mark.parametrize(("end_token", "lengths"), [(-1, [4, 1, 6]), (7, [3, 1, 2])])
def test_the_mask_ends_with_the_end_token(end_token, lengths):
    """The largest id or the given one, where it stands first; without one the first token."""
    task = tasks.make_task(make_config(model__end_token=end_token))
    ids = np.array([[1, 2, 7, 9, 9, 9], [9, 3, 2, 1, 0, 0], [1, 7, 3, 7, 8, 9]], np.int32)
    expected = np.arange(6) < np.array(lengths)[:, None]
    for tokens in (ids, jnp.asarray(ids)):
        mask = task.text_mask(tokens)
        assert isinstance(mask, type(tokens))
        np.testing.assert_array_equal(mask, expected)


def test_length_of_nothing():
    rows = normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("variant", ["", "sigmoid"])
def test_the_loss_is_of_the_global_batch(variant):
    """Three steps on eight devices are those on one: the negatives are those of all devices."""
    results = []
    for devices, fsdp in ((jax.devices()[:1], 1), (jax.devices(), 2)):
        config = make_config(variant, mesh__fsdp=fsdp)
        made = run.build(config, devices)
        state = made.init_state()
        for _ in range(3):
            state = made.train_step(state, jax.device_put(BATCH, made.batch_sharding()))
        results.append(jax.device_get((state.params, state.metrics)))
    one, eight = results
    assert one[1]["loss"] > 0
    for name, value in one[1].items():
        np.testing.assert_allclose(eight[1][name], value, rtol=2e-4, err_msg=name)
    # Of eight microbatches of two the loss is another: the test can tell.
    of = jax.jit(lambda batch: TASK.loss(PARAMS, {}, batch, KEY)[0])
    parts = [{name: x[2 * k : 2 * k + 2] for name, x in BATCH.items()} for k in range(8)]
    assert abs(np.mean([of(part) for part in parts]) - of(BATCH)) > 0.5


def test_preview_shows_an_image_and_its_nearest():
    pictures = np.asarray(TASK.preview(PARAMS, KEY))
    assert pictures.shape == (64, 8, 8, 1)
    assert pictures.min() >= -1
    assert pictures.max() <= 1
    rows = pictures.reshape(8, 8, 8, 8, 1)
    embedding = np.asarray(TASK.embed_images(PARAMS, np.uint8((rows + 1) * 127.5 + 0.5)[0]))
    similarity = embedding @ embedding[0]
    np.testing.assert_allclose(similarity[0], 1.0, rtol=1e-5)
    assert (np.diff(similarity) <= 1e-5).all()
    np.testing.assert_array_equal(pictures, TASK.preview(PARAMS, jax.random.key(5)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__context": 7}, r"config\.data\.context must be 6, not 7"),
        ({"model__logit_bias": True}, r"config\.model\.logit_bias must be False"),
        ({"train__accumulate": 2}, r"config\.train\.accumulate must be 1, not 2"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        tasks.make_task(make_config(**changes))


def test_another_network_or_loss_is_refused():
    config = shapes_clip.get_config()
    config.task = "clip(loss='triplet')"
    with pytest.raises(ConfigError, match="loss='triplet' is none of contrastive, sigmoid"):
        tasks.make_task(freeze(config))
