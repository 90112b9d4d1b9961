import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import MODELS

SIZES = {"in_channels": 1, "out_channels": 1, "image_size": 4, "num_classes": 3}
FIELDS = {
    "unet": {
        "channels": 8,
        "channel_mult": (1,),
        "num_res_blocks": 1,
        "attention_resolutions": (),
        "norm_groups": 4,
        "dropout": 0.0,
    },
    "dit": {"hidden_size": 8, "depth": 1, "num_heads": 1, "null_class": False},
}
X = jnp.linspace(-1.0, 1.0, 32).reshape(2, 4, 4, 1)
TIME = jnp.array([3.0, 700.0])


def make(name, **fields):
    network = MODELS[name](**SIZES, **FIELDS[name], **fields)
    return network, jax.jit(network.init)(jax.random.key(0))


def awake(params):
    """Layers that start at zero would hide what comes before them."""
    return jax.tree.map(
        lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params
    )


def condition(**more):
    return {"label": jnp.array([0, 2])} | more


@pytest.mark.parametrize("name", FIELDS)
def test_a_network_that_is_told_more_begins_as_the_one_that_was_not(name):
    plain, params = make(name)
    told, more = make(name, scalars=("step", "guidance"))
    params = awake(params)
    assert set(more) - set(params) == {"scalars"}
    both = params | {"scalars": more["scalars"]}
    numbers = {"step": jnp.array([0.1, 0.9]), "guidance": jnp.array([1.0, 4.0])}
    expected = jax.jit(plain.apply)(params, X, TIME, condition())
    call = jax.jit(told.apply)
    np.testing.assert_array_equal(call(both, X, TIME, condition(**numbers)), expected)

    both = params | {"scalars": awake(more["scalars"])}
    base = call(both, X, TIME, condition(**numbers))
    for number in numbers:
        changed = numbers | {number: numbers[number] * jnp.array([1.0, 1.5])}
        moved = call(both, X, TIME, condition(**changed))
        # Each example is told its own.
        np.testing.assert_allclose(moved[0], base[0], rtol=1e-5, atol=1e-6)
        assert jnp.abs(moved[1] - base[1]).max() > 1e-4


@pytest.mark.parametrize("name", FIELDS)
def test_the_condition_has_every_scalar(name):
    told, _ = make(name, scalars=("step",))
    shapes = jax.eval_shape(told.init, jax.random.key(0))
    for wrong in (condition(), condition(guidance=TIME), condition(step=TIME, guidance=TIME)):
        with pytest.raises(ValueError, match=r"takes \['label', 'step'\]"):
            jax.eval_shape(told.apply, shapes, X, TIME, wrong)


@pytest.mark.parametrize("name", FIELDS)
def test_forward_derivatives_go_through(name):
    """MeanFlow and sCM differentiate along x, time and step at once."""
    told, params = make(name, scalars=("step",))
    params = awake(params)

    def call(x, time, step):
        return told.apply(params, x, time, condition(step=step))

    step, h = jnp.array([0.3, 0.8]), 2e-3
    tangents = (jnp.sin(7 * X), jnp.array([1.0, -2.0]), jnp.array([1.0, 0.5]))
    point = (X, TIME / 1000, step)
    _, found = jax.jit(lambda *a: jax.jvp(call, a, tangents))(*point)
    ahead, behind = (
        jax.jit(call)(*(p + sign * h * d for p, d in zip(point, tangents, strict=True)))
        for sign in (1, -1)
    )
    expected = (ahead - behind) / (2 * h)
    np.testing.assert_allclose(found, expected, atol=5e-3 * float(jnp.abs(expected).max()))
