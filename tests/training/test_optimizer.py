import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from training import optimizer
from training.components import ConfigError


def settings(**fields):
    config = base.get_config().optimizer
    config.update(learning_rate=0.1, warmup_steps=10, **fields)
    return config


@pytest.mark.parametrize(
    ("decay", "at_half", "at_end"),
    [("constant", 0.1, 0.1), ("linear", 0.05, 0), ("cosine", 0.05, 0)],
)
def test_learning_rate(decay, at_half, at_end):
    rate = optimizer.learning_rate(settings(decay=decay), steps=110)
    values = [float(rate(step)) for step in (0, 5, 10, 60, 110)]
    np.testing.assert_allclose(values, [0, 0.05, 0.1, at_half, at_end], atol=1e-7)


def test_clipping_is_of_the_global_norm():
    transform = optimizer.make_optimizer(settings(name="sgd", clip_norm=1.0), lambda _: 1.0)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([0.0, 4.0])}
    updates, _ = transform.update(grads, transform.init(params), params)
    np.testing.assert_allclose(updates["a"], [-0.6, 0], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], [0, -0.8], rtol=1e-6)


def test_unknown_optimizer_names_the_nearest():
    with pytest.raises(ConfigError, match=r"config\.optimizer\.name.*did you mean 'adam'"):
        optimizer.make_optimizer(settings(name="adm"), lambda _: 1.0)
