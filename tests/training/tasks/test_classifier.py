import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits_classifier
from diffusion import GUIDANCES, Prediction, guide
from training import tasks
from training.components import ConfigError
from training.config import freeze, validate

KEY = jax.random.key(0)


def make_task(**sections):
    config = digits_classifier.get_config("smoke")
    config.model.update(channels=8, channel_mult=(1,), norm_groups=4, head_channels=4, dropout=0.0)
    config.model.attention_resolutions = ()
    for name, fields in sections.items():
        if isinstance(fields, dict):
            config[name].update(fields)
        else:
            config[name] = fields
    validate(config)
    return tasks.TASKS["classifier"](freeze(config))


TASK = make_task()
PARAMS = jax.jit(TASK.init)(KEY)
RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.integers(0, 256, (6, 8, 8, 1), np.uint8),
    "label": np.arange(6, dtype=np.int32),
}


def test_is_a_task():
    assert isinstance(TASK, tasks.Task)
    assert set(TASK.batch_spec(4)) == {"image", "label"}


def test_loss_is_cross_entropy_of_the_noisy_image(monkeypatch):
    """With logits that know the label, at every level: loss and accuracy are theirs."""
    seen = {}

    def logits(params, x, level, dropout_key=None):
        seen.update(x=x, level=level)
        return params * jax.nn.one_hot((jnp.arange(6) + (jnp.arange(6) == 5)) % 10, 10)

    monkeypatch.setattr(TASK, "logits", logits)
    loss, (metrics, state) = TASK.loss(jnp.float32(3.0), {}, BATCH, KEY)
    right = np.log(np.exp(3.0) + 9.0) - 3.0
    np.testing.assert_allclose(loss, (5 * right + right + 3.0) / 6, rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], 5 / 6, rtol=1e-6)
    assert state == {}
    # One level an example, and the noisiest images are the furthest from clean ones.
    clean = BATCH["image"] / 127.5 - 1.0
    assert len(np.unique(seen["level"].t)) > 1
    rest = seen["x"] - seen["level"].like(seen["x"]).alpha * clean
    spread = np.asarray(rest).std((1, 2, 3)) / np.asarray(seen["level"].sigma)
    np.testing.assert_allclose(spread, 1.0, atol=0.3)


def test_learns_to_tell_bright_from_dark():
    """A few steps of gradient descent: the accuracy at all noise levels leaves chance behind."""
    label = np.arange(64, dtype=np.int32) % 2
    batch = {"image": np.uint8(255 * label)[:, None, None, None] + np.zeros((1, 8, 8, 1), np.uint8)}
    batch["label"] = label

    @jax.jit
    def step(params, key):
        (_, (metrics, _)), slope = jax.value_and_grad(TASK.loss, has_aux=True)(
            params, {}, batch, key
        )
        return jax.tree.map(lambda p, g: p - 0.05 * g, params, slope), metrics["accuracy"]

    params, accuracies = PARAMS, []
    for k in range(40):
        params, accuracy = step(params, jax.random.fold_in(KEY, k))
        accuracies.append(float(accuracy))
    assert np.mean(accuracies[:3]) < 0.6
    assert np.mean(accuracies[-5:]) > 0.8


def test_guides_by_the_gradient_of_its_log_probability():
    """The shift of eps, against a finite difference of log p(label | x)."""
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(KEY, p.shape), PARAMS)
    log_prob = TASK.log_prob(params)
    level, x = TASK.schedule.level(jnp.asarray(300)), jax.random.normal(KEY, (2, 8, 8, 1))
    label = jnp.array([3, 7])
    total = sum(jnp.exp(log_prob(x, level, jnp.full(2, k))) for k in range(10))
    np.testing.assert_allclose(total, 1.0, rtol=1e-5)

    def nothing(x, level, condition):
        return Prediction(0.0 * x, 0.0 * x)

    guidance = GUIDANCES["classifier"](scale=2.0, workdir="-")
    got = guide(nothing, (guidance,), TASK.parameterization, None, (log_prob,))(
        x, level, {"label": label}
    )
    direction = jax.random.normal(jax.random.key(5), x.shape)
    step = 1e-2
    ahead, behind = (log_prob(x + s * step * direction, level, label) for s in (1, -1))
    slope = (ahead - behind) / (2 * step)
    along = -(got.eps * direction).sum((1, 2, 3)) / (2.0 * level.sigma)
    np.testing.assert_allclose(along, slope, rtol=2e-2, atol=1e-3)
    np.testing.assert_allclose(level.alpha * got.x0 + level.sigma * got.eps, 0.0, atol=1e-6)


def test_preview_shows_slopes():
    pictures = TASK.preview(PARAMS, KEY)
    assert pictures.shape == (10, 8, 8, 1)
    np.testing.assert_allclose(np.abs(pictures).max((1, 2, 3)), 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"num_classes": 0}}, "num_classes = 0: a classifier needs classes"),
        ({"diffusion": {"schedule": "vdm_scalar()"}}, "is learned with a diffusion model"),
        ({"data": {"device_augmentation": "edm()"}}, "must be '' with task 'classifier'"),
    ],
)
def test_what_cannot_guide_is_refused(sections, message):
    with pytest.raises(ConfigError, match=message):
        make_task(**sections)
