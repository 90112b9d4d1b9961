import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from models import count_parameters
from models.functional import functional, normal, scan, stack, uniform


class Tower(nnx.Module):
    def __init__(self, *, rngs):
        layers = [nnx.Linear(8, 8, rngs=rngs) for _ in range(11)]
        self.layers = nnx.List(layers)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, *, scale=1.0, rngs=None):
        for layer in self.layers:
            x = layer(x)
        return scale * self.dropout(x, deterministic=rngs is None, rngs=rngs)


NETWORK = functional(lambda rngs: Tower(rngs=rngs))


def test_params_are_plain_nested_dicts_with_str_keys():
    params = NETWORK.init(jax.random.key(0))
    assert type(params) is dict
    assert list(params) == ["layers"]
    assert set(params["layers"]) == {str(i) for i in range(11)}
    assert set(params["layers"]["3"]) == {"kernel", "bias"}
    assert all(type(leaf).__module__.startswith("jax") for leaf in jax.tree.leaves(params))
    assert count_parameters(params) == 11 * (64 + 8)


def test_apply_is_the_module_itself():
    # Eleven layers: '10' sorts before '2', so that a mix-up of the order of leaves shows.
    params = NETWORK.init(jax.random.key(3))
    x = jax.random.normal(jax.random.key(1), (4, 8))
    expected = x
    for i in range(11):
        layer = params["layers"][str(i)]
        expected = expected @ layer["kernel"] + layer["bias"]
    np.testing.assert_allclose(NETWORK.apply(params, x, scale=2.0), 2 * expected, rtol=1e-4)


def test_init_under_jit_creates_sharded_params_and_eval_shape_none():
    mesh = Mesh(np.array(jax.devices()), "devices")
    sharding = NamedSharding(mesh, PartitionSpec("devices"))
    params = jax.jit(NETWORK.init, out_shardings=sharding)(jax.random.key(0))
    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0))
    for leaf, shape in zip(jax.tree.leaves(params), jax.tree.leaves(shapes), strict=True):
        assert leaf.sharding == sharding
        assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype)
    expected = NETWORK.init(jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, expected)


class Drawn(nnx.Module):
    def __init__(self):
        self.wide, self.none = uniform((200, 100), 3.0), nnx.Param(jnp.ones(5))
        self.narrow = uniform((4, 5, 1000), 0.5)

    def __call__(self):
        return self.wide[...]


def test_uniform_parameters_are_drawn_by_init():
    network = functional(lambda rngs: Drawn())
    params = network.init(jax.random.key(0))
    np.testing.assert_array_equal(params["none"], 1)
    for name, bound in (("wide", 3.0), ("narrow", 0.5)):
        value = np.asarray(params[name]).ravel()
        assert np.abs(value).max() <= bound
        # Deciles of the uniform distribution, within four standard errors.
        counts, _ = np.histogram(value, bins=10, range=(-bound, bound))
        np.testing.assert_allclose(counts, 2000, atol=4 * 2000**0.5)
    wide, narrow = params["wide"].ravel(), params["narrow"].ravel()
    assert abs(np.corrcoef(wide, narrow)[0, 1]) < 0.03
    again, other = network.init(jax.random.key(0)), network.init(jax.random.key(1))
    np.testing.assert_array_equal(params["wide"], again["wide"])
    assert (params["wide"] != other["wide"]).mean() > 0.99


def test_dropout_only_with_a_key():
    params = NETWORK.init(jax.random.key(0))
    x = jnp.ones((4, 8))
    plain = NETWORK.apply(params, x)
    first = NETWORK.apply(params, x, dropout_key=jax.random.key(1))
    assert (first == 0).any()
    assert not (plain == 0).any()
    kept = first != 0
    np.testing.assert_allclose(first[kept], 2 * plain[kept], rtol=1e-6)
    np.testing.assert_array_equal(first, NETWORK.apply(params, x, dropout_key=jax.random.key(1)))
    assert (first != NETWORK.apply(params, x, dropout_key=jax.random.key(2))).any()


def test_second_call_traces_nothing():
    traces = []

    @jax.jit
    def step(params, x, key):
        traces.append(1)
        loss = lambda p: NETWORK.apply(p, x, dropout_key=key).sum()  # noqa: E731
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))

    params = NETWORK.init(jax.random.key(0))
    for seed in range(3):
        params = step(params, jnp.ones((4, 8)), jax.random.key(seed))
    assert len(traces) == 1
    assert step._cache_size() == 1


def test_first_use_inside_a_trace_leaks_nothing():
    network = functional(lambda rngs: Tower(rngs=rngs))
    with jax.checking_leaks():
        params = jax.jit(network.init)(jax.random.key(0))
        inside = jax.jit(network.apply)(params, jnp.ones((4, 8)))
    np.testing.assert_allclose(network.apply(params, jnp.ones((4, 8))), inside, rtol=1e-6)


def test_params_of_another_network_are_an_error():
    params = NETWORK.init(jax.random.key(0))
    params["layers"]["11"] = params["layers"].pop("10")
    with pytest.raises(ValueError, match="'11'"):
        NETWORK.apply(params, jnp.ones((4, 8)))


def test_state_other_than_parameters_is_an_error():
    network = functional(lambda rngs: nnx.BatchNorm(4, rngs=rngs))
    with pytest.raises(TypeError, match="mean is BatchStat"):
        network.init(jax.random.key(0))


def test_no_deprecated_api():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = functional(lambda rngs: Tower(rngs=rngs))
        params = network.init(jax.random.key(0))
        network.apply(params, jnp.ones((4, 8)), dropout_key=jax.random.key(0))


class DrawnNormal(nnx.Module):
    def __init__(self):
        self.wide, self.narrow = normal((200, 100), 3.0), normal((4, 5, 1000), 0.5)
        self.uniform = uniform((20_000,), 1.0)

    def __call__(self):
        return self.wide[...]


def test_normal_parameters_are_drawn_by_init():
    params = functional(lambda rngs: DrawnNormal()).init(jax.random.key(0))
    for name, std in (("wide", 3.0), ("narrow", 0.5)):
        value = np.asarray(params[name]).ravel() / std
        # Quartiles of the standard normal distribution, within four standard errors.
        edges = [-np.inf, -0.67449, 0, 0.67449, np.inf]
        counts, _ = np.histogram(value, bins=edges)
        np.testing.assert_allclose(counts, 5000, atol=4 * 3750**0.5)
        np.testing.assert_allclose(value.std(), 1, rtol=0.03)
    # No draw is another's, of the same kind or not.
    draws = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(params)]
    assert np.abs(np.corrcoef(draws) - np.eye(3)).max() < 0.04


class Layer(nnx.Module):
    def __init__(self):
        self.kernel, self.bias = uniform((8, 8), 1.0), nnx.Param(jnp.ones(8))

    def __call__(self, x, scale):
        return jnp.tanh(scale * (x @ self.kernel[...]) + self.bias[...])


class Stacked(nnx.Module):
    def __init__(self, remat, depth=11):
        self.layers, self.remat = stack(Layer, depth), remat

    def __call__(self, x, scale):
        return scan(self.layers, x, scale, remat=self.remat)


@pytest.mark.parametrize("remat", [False, True])
def test_stack_is_its_layers_in_turn(remat):
    network = functional(lambda rngs: Stacked(remat))
    params = network.init(jax.random.key(0))
    kernel, bias = params["layers"]["kernel"], params["layers"]["bias"]
    assert (kernel.shape, bias.shape) == ((11, 8, 8), (11, 8))
    assert len(np.unique(np.asarray(kernel).reshape(11, -1), axis=0)) == 11
    np.testing.assert_array_equal(bias, 1)

    def one_by_one(params, x, scale):
        for i in range(11):
            layer = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
            x = jnp.tanh(scale * (x @ layer["kernel"]) + layer["bias"])
        return x.sum()

    x = jax.random.normal(jax.random.key(1), (4, 8))
    for function, other in (
        (lambda *a: network.apply(*a).sum(), one_by_one),
        (jax.grad(lambda *a: network.apply(*a).sum()), jax.grad(one_by_one)),
    ):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
            function(params, x, 0.5),
            other(params, x, 0.5),
        )


@pytest.mark.parametrize(
    ("depth", "remat", "loops"), [(4, False, False), (4, True, True), (5, False, True)]
)
def test_a_short_stack_is_no_loop(depth, remat, loops):
    """Unless it is to be computed again: outside of a loop the compiler would merge that."""
    network = functional(lambda rngs: Stacked(remat, depth))
    params = jax.eval_shape(network.init, jax.random.key(0))
    gradient = jax.jit(jax.grad(lambda p, x: network.apply(p, x, 0.5).sum()))
    program = gradient.lower(params, jax.ShapeDtypeStruct((4, 8), jnp.float32)).as_text()
    assert ("stablehlo.while" in program) == loops
