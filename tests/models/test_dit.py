import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.networks import dit
from models import MODELS, count_parameters
from models.dit import DiTConfig, make_dit

XL = DiTConfig(in_channels=4, out_channels=8, image_size=32)
SMALL = DiTConfig(
    in_channels=3,
    out_channels=6,
    image_size=8,
    hidden_size=32,
    depth=3,
    num_heads=4,
    num_classes=3,
    null_class=True,
)
BATCH = 4
# These tests run each program once or twice: half the compile time for slower programs.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def abstract(config):
    return jax.eval_shape(make_dit(config).init, jax.random.key(0))


@functools.cache
def initial(config):
    return compiled(make_dit(config).init)(jax.random.key(0))


def params_of(config):
    """Random parameters without the zeros that hide most of the network at initialization."""
    rng = np.random.default_rng(7)

    def draw(shape):
        return jnp.asarray(0.2 * rng.standard_normal(shape), jnp.float32)

    return jax.tree.map(lambda leaf: draw(leaf.shape), abstract(config))


def inputs(config):
    x = np.random.default_rng(1).standard_normal((BATCH, 8, 8, config.in_channels))
    condition = {"label": jnp.array([0, 1, 2, 3])} if config.num_classes else None
    return jnp.asarray(x, jnp.float32), jnp.array([0, 1, 500, 999]), condition


@functools.cache
def forward(config):
    return compiled(make_dit(config).apply)


@functools.cache
def value_and_grad(config):
    network = make_dit(config)

    def loss(params):
        return jnp.square(network.apply(params, *inputs(config))).mean()

    return compiled(jax.value_and_grad(loss))(params_of(config))


@pytest.mark.parametrize(
    ("hidden", "depth", "heads", "count"),
    [
        (384, 12, 6, 32_963_360),
        (768, 12, 12, 130_512_416),
        (1024, 24, 16, 458_102_816),
        (1152, 28, 16, 675_129_632),
    ],
    ids=["S/2", "B/2", "L/2", "XL/2"],
)
def test_parameter_counts_of_the_authors(hidden, depth, heads, count):
    """facebookresearch/DiT counts its table of positions, too, which is no parameter here."""
    config = dataclasses.replace(XL, hidden_size=hidden, depth=depth, num_heads=heads)
    assert count_parameters(abstract(config)) == count - 16 * 16 * hidden


def test_output_is_zero_at_initialization():
    output = forward(SMALL)(initial(SMALL), *inputs(SMALL))
    assert output.shape == (BATCH, 8, 8, 6)
    assert output.dtype == jnp.float32
    assert not output.any()


def test_blocks_are_the_identity_at_initialization():
    params = initial(SMALL)
    for name in ("modulation_out", "linear_out"):
        params[name] = params_of(SMALL)[name]
    output = forward(SMALL)(params, *inputs(SMALL))
    assert output.any()
    params["blocks"]["mlp2"] = params_of(SMALL)["blocks"]["mlp2"]
    np.testing.assert_array_equal(forward(SMALL)(params, *inputs(SMALL)), output)


def test_initial_distribution():
    params = initial(dataclasses.replace(SMALL, hidden_size=64))
    blocks = params["blocks"]
    uniform = {
        "qkv": (blocks["attention"]["qkv"], 64 + 192),
        "projection": (blocks["attention"]["projection"], 128),
        "mlp1": (blocks["mlp1"], 320),
        "mlp2": (blocks["mlp2"], 320),
        "patches": (params["patches"], 12 + 64),
    }
    for name, (layer, fans) in uniform.items():
        bound = (6 / fans) ** 0.5
        kernel = np.asarray(layer["kernel"])
        assert 0.97 * bound < np.abs(kernel).max() <= bound, name
        np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.1, err_msg=name)
        assert not layer["bias"].any()
    for name in ("time1", "time2"):
        np.testing.assert_allclose(params[name]["kernel"].std(), 0.02, rtol=0.1)
        assert not params[name]["bias"].any()
    np.testing.assert_allclose(params["label"]["embedding"].std(), 0.02, rtol=0.2)
    zeros = (blocks["modulation"], params["modulation_out"], params["linear_out"])
    assert not any(leaf.any() for leaf in jax.tree.leaves(zeros))


def test_no_two_blocks_start_alike():
    kernel = initial(SMALL)["blocks"]["mlp1"]["kernel"]
    assert kernel.shape == (3, 32, 128)
    assert not jnp.isclose(kernel[0], kernel[1]).any(axis=0).all()
    assert abs(np.corrcoef(kernel[0].ravel(), kernel[2].ravel())[0, 1]) < 0.1


def test_every_parameter_matters():
    _, grads = value_and_grad(SMALL)
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    assert not [jax.tree_util.keystr(path) for path, grad in leaves if not grad.any()]
    # Of every block, not of one of the stack only.
    for grad in jax.tree.leaves(grads["blocks"]):
        assert grad.reshape(3, -1).any(axis=1).all()


def test_remat_changes_nothing():
    remat = value_and_grad(dataclasses.replace(SMALL, remat=True))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)  # noqa: E731
    jax.tree.map(close, value_and_grad(SMALL), remat)


def test_remat_keeps_fewer_activations():
    def residuals(config):
        """Elements that the forward pass keeps for the backward pass."""
        network = make_dit(config)

        def backward(params):
            return jax.vjp(lambda p: network.apply(p, *inputs(config)), params)[1]

        return sum(
            leaf.size for leaf in jax.tree.leaves(jax.eval_shape(backward, abstract(config)))
        )

    assert residuals(dataclasses.replace(SMALL, remat=True)) < 0.6 * residuals(SMALL)


def test_bfloat16_is_close_and_gives_float32():
    params = params_of(SMALL)
    exact = forward(SMALL)(params, *inputs(SMALL))
    half = dataclasses.replace(SMALL, dtype="bfloat16")
    output = forward(half)(params, *inputs(SMALL))
    assert output.dtype == jnp.float32
    assert 0 < jnp.abs(output - exact).max() < 0.05 * jnp.abs(exact).max()
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract(half))} == {jnp.dtype("float32")}


def test_images_of_a_batch_do_not_touch():
    apply, params = forward(SMALL), params_of(SMALL)
    x, time, condition = inputs(SMALL)
    first = apply(params, x, time, condition)
    # Every other image, time and label changes; those of the first stay.
    changed = jax.tree.map(lambda a: a.at[1:].set(a[:1]), (x, time, condition))
    second = apply(params, *changed)
    np.testing.assert_allclose(second[0], first[0], rtol=1e-4, atol=1e-5)
    assert np.abs(second[1:] - first[1:]).max() > 0.1


def test_position_matters():
    """Equal patches all over give outputs that differ with row and column."""
    x = jnp.ones((BATCH, 8, 8, 3))
    output = forward(SMALL)(params_of(SMALL), x, *inputs(SMALL)[1:])
    patches = np.asarray(output)[0].reshape(4, 2, 4, 2, 6).swapaxes(1, 2).reshape(16, -1)
    assert len(np.unique(patches.round(4), axis=0)) == 16


def test_labels_and_the_null_label():
    apply, params = forward(SMALL), params_of(SMALL)
    x = jnp.broadcast_to(inputs(SMALL)[0][:1], (BATCH, 8, 8, 3))
    by_label = apply(params, x, jnp.zeros(BATCH, int), {"label": jnp.arange(4)})
    assert len(np.unique(np.asarray(by_label).reshape(4, -1), axis=0)) == 4
    beyond = apply(params, x, jnp.zeros(BATCH, int), {"label": jnp.full(4, 4)})
    assert jnp.isnan(beyond).all()


def test_without_classes():
    free = dataclasses.replace(SMALL, num_classes=0, null_class=False)
    assert "label" not in abstract(free)
    with pytest.raises(ValueError, match=r"condition has \['label'\].*num_classes=0 takes None"):
        jax.eval_shape(make_dit(free).apply, abstract(free), *inputs(SMALL))
    output = jax.eval_shape(make_dit(free).apply, abstract(free), *inputs(free))
    assert output.shape == (BATCH, 8, 8, 6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 3}, "patch_size=3: must divide image_size=8"),
        ({"hidden_size": 30}, "hidden_size=30: must be a multiple of 4"),
        ({"num_heads": 5}, "num_heads=5: must divide hidden_size=32"),
        ({"depth": 0}, "depth=0: must be positive"),
        ({"mlp_ratio": 0.0}, "mlp_ratio=0.0: must be positive"),
        ({"dtype": "float16"}, "dtype='float16': allowed are float32, bfloat16"),
        ({"attention": "flash"}, "attention='flash': allowed are xla, cudnn"),
        ({"attention": "cudnn"}, "attention='cudnn': needs dtype='bfloat16'"),
        ({"num_classes": 0}, "null_class=True: needs num_classes"),
    ],
)
def test_what_cannot_be_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **fields)


def test_registry_takes_the_fields_of_the_config_section():
    fields = dit().to_dict()
    params = jax.eval_shape(MODELS[fields.pop("name")](4, 8, 32, **fields).init, jax.random.key(0))
    assert params == abstract(XL)


def test_a_vector_goes_where_time_goes():
    config = dataclasses.replace(SMALL, num_classes=0, null_class=False, embedding_dim=5)
    params, (x, time, _) = params_of(config), inputs(config)
    vector = jnp.asarray(np.random.default_rng(2).standard_normal((BATCH, 5)), jnp.float32)
    base = forward(config)(params, x, time, {"embedding": vector})
    # The vector's layer adds nothing of its own but what a bias of time's second layer would.
    plain = dataclasses.replace(config, embedding_dim=0)
    own = {name: leaf for name, leaf in params.items() if name != "embedding"}
    added = vector[0] @ params["embedding"]["kernel"] + params["embedding"]["bias"]
    own["time2"] = own["time2"] | {"bias": own["time2"]["bias"] + added}
    expected = forward(plain)(own, x[:1], time[:1], None)
    np.testing.assert_allclose(base[:1], expected, rtol=1e-4, atol=1e-5)
    for told in (None, {"embedding": vector[:, :4]}):
        with pytest.raises(ValueError, match="embedding_dim=5 makes it"):
            make_dit(config).apply(params, x, time, told)


def test_learned_positions_tell_one_patch_from_another():
    """They begin at size 1; without them the network commutes with a shift by patches."""
    config = dataclasses.replace(SMALL, positions="learned")
    params, (x, time, condition) = params_of(config), inputs(config)
    assert params["positions"].shape == (config.side**2, config.hidden_size)
    assert initial(config)["positions"].std() == pytest.approx(1.0, abs=0.1)
    out = forward(config)(params, x, time, condition)
    turned = jnp.roll(x, 2, axis=1)
    assert (
        jnp.abs(forward(config)(params, turned, time, condition) - jnp.roll(out, 2, 1)).max() > 0.1
    )
    lost = params | {"positions": jnp.zeros_like(params["positions"])}
    moved = forward(config)(lost, turned, time, condition)
    still = forward(config)(lost, x, time, condition)
    np.testing.assert_allclose(moved, jnp.roll(still, 2, axis=1), rtol=1e-4, atol=1e-4)
