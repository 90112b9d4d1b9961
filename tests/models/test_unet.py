import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import MODELS, count_parameters
from models.layers import depth_to_space, space_to_depth
from models.unet import UNetConfig, make_unet

DDPM = UNetConfig(in_channels=3, out_channels=3, image_size=32)
ADM64 = UNetConfig(
    in_channels=3,
    out_channels=6,
    image_size=64,
    channels=192,
    channel_mult=(1, 2, 3, 4),
    num_res_blocks=3,
    attention_resolutions=(32, 16, 8),
    head_channels=64,
    conditioning="scale_shift",
    resample="resblock",
    time_embedding="adm",
    norm_eps=1e-5,
    init="torch",
    num_classes=1000,
)
ADM128 = dataclasses.replace(
    ADM64,
    image_size=128,
    channels=256,
    channel_mult=(1, 1, 2, 3, 4),
    num_res_blocks=2,
    num_heads=4,
    head_channels=0,
)
ADM256 = dataclasses.replace(
    ADM128, image_size=256, channel_mult=(1, 1, 2, 2, 4, 4), head_channels=64
)
IDDPM = dataclasses.replace(
    DDPM,
    out_channels=6,
    num_res_blocks=3,
    attention_resolutions=(16, 8),
    num_heads=4,
    conditioning="scale_shift",
    resample="conv_symmetric",
    time_embedding="adm",
    norm_eps=1e-5,
    init="torch",
)
IDDPM64 = dataclasses.replace(IDDPM, image_size=64, channel_mult=(1, 2, 3, 4))
# Small relatives of both, quick to compile.
SMALL = dataclasses.replace(
    DDPM,
    image_size=8,
    channels=8,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    norm_groups=4,
    dropout=0.5,
)
SMALL_ADM = dataclasses.replace(
    SMALL,
    out_channels=6,
    head_channels=4,
    conditioning="scale_shift",
    resample="resblock",
    time_embedding="adm",
    norm_eps=1e-5,
    init="torch",
    num_classes=3,
    null_class=True,
)
SMALL_CONFIGS = pytest.mark.parametrize("config", [SMALL, SMALL_ADM], ids=["ddpm", "adm"])
BATCH = 4
# These tests run each program once or twice: half the compile time for slower programs.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def abstract(config):
    return jax.eval_shape(make_unet(config).init, jax.random.key(0))


def params_of(config):
    """Random parameters without the zeros that hide most of the network at initialization."""
    rng = np.random.default_rng(7)

    def draw(shape):
        size = 0.3 if len(shape) == 1 else np.prod(shape[:-1]) ** -0.5
        return jnp.asarray(size * rng.standard_normal(shape), jnp.float32)

    return jax.tree.map(lambda leaf: draw(leaf.shape), abstract(config))


def inputs(config):
    x = np.random.default_rng(1).standard_normal((BATCH, 8, 8, config.in_channels))
    condition = {"label": jnp.array([0, 1, 2, 3])} if config.num_classes else None
    return jnp.asarray(x, jnp.float32), jnp.array([0, 1, 500, 999]), condition


@pytest.mark.parametrize(
    ("config", "count"),
    [(DDPM, 35_746_307), (ADM64, 295_904_454), (ADM128, 421_529_606), (ADM256, 553_838_086)],
    ids=["ddpm-cifar10", "adm-imagenet64", "adm-imagenet128", "adm-imagenet256"],
)
def test_parameter_counts_of_the_papers(config, count):
    assert_count(config, count)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("iddpm-cifar10", IDDPM),
        ("iddpm-imagenet64", IDDPM64),
        (
            "iddpm-imagenet64-class",
            dataclasses.replace(IDDPM64, channels=192, num_classes=1000),
        ),
    ],
)
def test_parameter_counts_of_improved_diffusion(name, config):
    counts = json.loads(pathlib.Path("tests/golden/models/counts.json").read_text())
    assert_count(config, counts[name])


def assert_count(config, count):
    params = abstract(config)
    assert count_parameters(params) == count
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@functools.cache
def forward(config):
    return compiled(make_unet(config).apply)


@functools.cache
def value_and_grad(config):
    network = make_unet(config)

    def loss(params):
        output = network.apply(params, *inputs(config), dropout_key=jax.random.key(0))
        return jnp.square(output).mean()

    return compiled(jax.value_and_grad(loss))(params_of(config))


@SMALL_CONFIGS
def test_output_is_zero_at_initialization(config):
    params = compiled(make_unet(config).init)(jax.random.key(0))
    output = forward(config)(params, *inputs(config))
    assert output.shape == (BATCH, 8, 8, config.out_channels)
    assert not output.any()


@SMALL_CONFIGS
def test_every_parameter_matters(config):
    _, grads = value_and_grad(config)
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    assert not [jax.tree_util.keystr(path) for path, grad in leaves if not grad.any()]


def test_remat_changes_nothing():
    remat = value_and_grad(dataclasses.replace(SMALL_ADM, remat=True))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # noqa: E731
    jax.tree.map(close, value_and_grad(SMALL_ADM), remat)


def test_remat_keeps_fewer_activations():
    def residuals(config):
        """Elements that the forward pass keeps for the backward pass."""
        network = make_unet(config)

        def backward(params):
            return jax.vjp(lambda p: network.apply(p, *inputs(config)), params)[1]

        return sum(
            leaf.size for leaf in jax.tree.leaves(jax.eval_shape(backward, abstract(config)))
        )

    assert residuals(dataclasses.replace(SMALL, remat=True)) < 0.7 * residuals(SMALL)


def test_dropout_needs_a_key_and_follows_it():
    params = params_of(SMALL)
    plain, plain_again = (forward(SMALL)(params, *inputs(SMALL)) for _ in range(2))
    np.testing.assert_array_equal(plain, plain_again)
    first, again, other = (
        forward(SMALL)(params, *inputs(SMALL), dropout_key=jax.random.key(seed))
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    assert np.abs(first - plain).max() > 0.1


@SMALL_CONFIGS
def test_bfloat16_is_close_and_gives_float32(config):
    params = params_of(config)
    exact = forward(config)(params, *inputs(config))
    half = dataclasses.replace(config, dtype="bfloat16")
    output = forward(half)(params, *inputs(config))
    assert output.dtype == jnp.float32
    assert 0 < jnp.abs(output - exact).max() < 0.05 * jnp.abs(exact).max()
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract(half))} == {jnp.dtype("float32")}


def test_bfloat16_tells_all_thousand_steps_apart():
    config = dataclasses.replace(
        DDPM,
        dtype="bfloat16",
        image_size=4,
        channels=32,
        channel_mult=(1,),
        num_res_blocks=1,
        attention_resolutions=(),
    )
    output = forward(config)(params_of(config), jnp.ones((1000, 4, 4, 3)), jnp.arange(1000))
    assert len(np.unique(np.asarray(output).reshape(1000, -1), axis=0)) == 1000


@SMALL_CONFIGS
def test_images_of_a_batch_do_not_touch(config):
    apply, params = forward(config), params_of(config)
    x, time, condition = inputs(config)
    first = apply(params, x, time, condition)
    # Every other image, time and label changes; those of the first stay.
    changed = jax.tree.map(lambda a: a.at[1:].set(a[:1]), (x, time, condition))
    second = apply(params, *changed)
    np.testing.assert_allclose(second[0], first[0], rtol=1e-5, atol=1e-6)
    assert np.abs(second[1:] - first[1:]).max() > 0.1


def test_second_call_compiles_nothing():
    step = compiled(make_unet(SMALL).apply)
    for seed in range(3):
        x, time, _ = inputs(SMALL)
        step(params_of(SMALL), x + seed, time + seed)
    assert step._cache_size() == 1


def test_labels_and_the_null_label():
    apply, params = forward(SMALL_ADM), params_of(SMALL_ADM)
    assert params["label"]["embedding"].shape == (4, 32)
    x = jnp.broadcast_to(inputs(SMALL_ADM)[0][:1], (BATCH, 8, 8, 3))
    by_label = apply(params, x, jnp.zeros(BATCH), {"label": jnp.arange(4)})
    assert len(np.unique(np.asarray(by_label).reshape(4, -1), axis=0)) == 4
    beyond = apply(params, x, jnp.zeros(BATCH), {"label": jnp.full(4, 4)})
    assert jnp.isnan(beyond).all()


def test_patches_are_laid_on_the_channels_and_back():
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    patches = space_to_depth(x, 2)
    assert patches.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(patches[1, 1, 2].reshape(2, 2, 3), x[1, 2:4, 4:6])
    np.testing.assert_array_equal(depth_to_space(patches, 2), x)


def test_a_network_of_patches_is_one_of_smaller_images():
    """The same parameters, between the two ways of writing its images."""
    of_patches = dataclasses.replace(SMALL, image_size=16, patch_size=2)
    plain = dataclasses.replace(SMALL, in_channels=12, out_channels=12)
    assert of_patches.resolutions == plain.resolutions
    rng = np.random.default_rng(0)
    abstract = jax.eval_shape(make_unet(plain).init, jax.random.key(0))
    params = jax.tree.map(lambda p: jnp.asarray(0.2 * rng.normal(size=p.shape), p.dtype), abstract)
    x = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    time = jnp.array([3.0, 500.0])
    ours = jax.jit(make_unet(of_patches).apply)(params, x, time)
    theirs = jax.jit(make_unet(plain).apply)(params, space_to_depth(x, 2), time)
    np.testing.assert_allclose(ours, depth_to_space(theirs, 2), rtol=1e-5, atol=1e-5)


def test_condition_must_be_what_the_config_says():
    x, time, condition = inputs(SMALL_ADM)
    with pytest.raises(ValueError, match=r"condition has \[\].*num_classes=3 takes \['label'\]"):
        jax.eval_shape(make_unet(SMALL_ADM).apply, abstract(SMALL_ADM), x, time)
    with pytest.raises(ValueError, match=r"condition has \['label'\].*num_classes=0 takes None"):
        jax.eval_shape(make_unet(SMALL).apply, abstract(SMALL), x, time, condition)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"attention_resolutions": (16,)},
            r"attention_resolutions=\(16,\): the levels have \(8, 4\)",
        ),
        ({"norm_groups": 3}, r"norm_groups=3: .* \(8, 16\)"),
        ({"num_heads": 3}, r"num_heads=3: .* \[16\]"),
        ({"head_channels": 5}, r"head_channels=5: .* \[16\]"),
        ({"image_size": 9, "attention_resolutions": ()}, "image_size=9: must be a multiple of 2"),
        ({"image_size": 10, "patch_size": 2}, "multiple of 4: .* and patch_size is 2"),
        ({"patch_size": 0}, "patch_size=0: must be positive"),
        ({"resample": "convv"}, "did you mean 'conv'"),
        ({"dtype": "float16"}, "dtype='float16': allowed are float32, bfloat16"),
        ({"null_class": True}, "null_class=True: needs num_classes"),
        ({"attention": "cudnn"}, "attention='cudnn': needs dtype='bfloat16'"),
        ({"dropout": 1.0}, r"dropout=1.0: must be in \[0, 1\)"),
        ({"channels": 7}, "channels=7: must be even"),
        ({"num_res_blocks": 0}, "num_res_blocks=0: must be positive"),
        ({"num_classes": -1}, "num_classes=-1: must not be negative"),
        ({"channel_mult": ()}, "channel_mult"),
        ({"context": "cros", "context_dim": 8}, "did you mean 'cross'"),
        ({"context": "kv"}, "context_dim=0: context='kv'; 0 goes with 'none'"),
        ({"context_dim": 8}, "context_dim=8: context='none'; 0 goes with 'none'"),
        ({"transformer_depth": (1, 1, 1)}, r"transformer_depth=\(1, 1, 1\): .* the 2 levels"),
        ({"transformer_depth": (0,)}, "must be positive: one number"),
        ({"embedding_dim": -1}, "embedding_dim=-1: must not be negative"),
    ],
)
def test_what_cannot_be_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **fields)


def test_registry_takes_the_fields_of_the_config_section():
    fields = dataclasses.asdict(SMALL)
    sizes = [fields.pop(name) for name in ("in_channels", "out_channels", "image_size")]
    fields["channel_mult"] = list(fields["channel_mult"])
    params = jax.eval_shape(MODELS["unet"](*sizes, **fields).init, jax.random.key(0))
    assert params == abstract(SMALL)
    with pytest.raises(ValueError, match=r"model\.chanels: .*'channels'"):
        MODELS["unet"](*sizes, chanels=8)
