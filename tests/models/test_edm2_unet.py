import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.networks import edm2_unet
from models import MODELS, count_parameters
from models.edm2_unet import Block, EDM2UNetConfig, make_edm2_unet

# ImageNet-64; for latents of 4 channels (ImageNet-512) one kernel in and one out are wider.
PIXELS = EDM2UNetConfig(in_channels=3, out_channels=3, image_size=64)
LATENTS = dataclasses.replace(PIXELS, in_channels=4, out_channels=4)
SMALL = EDM2UNetConfig(
    in_channels=3,
    out_channels=6,
    image_size=8,
    channels=8,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    head_channels=4,
    dropout=0.5,
    num_classes=3,
    null_class=True,
)
BATCH = 4
# These tests run each program once or twice: half the compile time for slower programs.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def abstract(config):
    return jax.eval_shape(make_edm2_unet(config).init, jax.random.key(0))


@functools.cache
def params_of(config):
    """Initial parameters, with gains away from the zeros that hide most of the network."""
    params = compiled(make_edm2_unet(config).init)(jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf if leaf.ndim else jnp.full((), 0.7), params)


def inputs(config, seed=1):
    shape = (BATCH, config.image_size, config.image_size, config.in_channels)
    x = np.random.default_rng(seed).standard_normal(shape)
    condition = {"label": jnp.array([0, 1, 2, 3])} if config.num_classes else None
    return jnp.asarray(x, jnp.float32), jnp.array([-1.2, -0.3, 0.3, 1.0]), condition


@functools.cache
def forward(config):
    return compiled(make_edm2_unet(config).apply)


@functools.cache
def value_and_grad(config):
    network = make_edm2_unet(config)

    def loss(params):
        output = network.apply(params, *inputs(config), dropout_key=jax.random.key(0))
        return jnp.square(output).mean()

    return compiled(jax.value_and_grad(loss))(params_of(config))


@pytest.mark.parametrize(
    ("config", "channels", "count"),
    [
        (PIXELS, 128, 124_710_821),
        (PIXELS, 192, 280_209_253),
        (LATENTS, 64, 31_308_901),
        (LATENTS, 128, 124_713_125),
        (LATENTS, 192, 280_212_709),
    ],
    ids=["img64-xs", "img64-s", "img512-xxs", "img512-xs", "img512-s"],
)
def test_parameter_counts_of_the_authors(config, channels, count):
    """Those of NVlabs/edm2's UNet, where the Fourier features are buffers and not counted.

    The paper's figures are of Precond: 128 more, the weights of u(sigma), which are not here.
    """
    params = abstract(dataclasses.replace(config, channels=channels))
    assert count_parameters(params.pop("fourier")) == 2 * channels
    assert count_parameters(params) == count
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_output_is_zero_at_initialization():
    params = compiled(make_edm2_unet(SMALL).init)(jax.random.key(0))
    output = forward(SMALL)(params, *inputs(SMALL))
    assert output.shape == (BATCH, 8, 8, 6)
    assert not output.any()


def test_initial_kernels_are_normalized():
    for path, leaf in jax.tree_util.tree_leaves_with_path(params_of(SMALL)):
        if path[-1].key == "kernel":
            magnitude = np.sqrt(np.square(leaf).mean(tuple(range(leaf.ndim - 1))))
            # Over eps + RMS of a few normal numbers, of which an RMS of 0.1 would be rare.
            np.testing.assert_allclose(magnitude, 1, atol=1e-3)


def test_the_size_of_the_weights_does_not_matter():
    params = params_of(SMALL)
    larger = jax.tree.map(lambda leaf: 5 * leaf if leaf.ndim > 1 else leaf, params)
    output = forward(SMALL)(params, *inputs(SMALL))
    # Up to the eps of 1e-4 beside a magnitude of 1 or 5, once a layer.
    assert output.std() > 0.3
    np.testing.assert_allclose(forward(SMALL)(larger, *inputs(SMALL)), output, atol=1e-3)


def test_magnitudes_at_initialization(monkeypatch):
    """RMS after each block for an input of unit variance, over eight draws of the weights.

    The encoder normalizes. In the decoder attention averages, and the branches of a sum are not
    quite independent, so that up to a sixth is missing; but nothing adds up from block to block.
    """
    config = dataclasses.replace(
        SMALL, image_size=16, channels=32, num_res_blocks=2, attention_resolutions=(8,),
        head_channels=32, dropout=0.0,
    )  # fmt: skip
    network, call = make_edm2_unet(config), Block.__call__

    @compiled
    def squares(key):
        seen = {True: [], False: []}

        def spy(block, *arguments):
            output = call(block, *arguments)
            seen[block.decoder].append(jnp.square(output).mean())
            return output

        monkeypatch.setattr(Block, "__call__", spy)
        network.apply(network.init(key), *inputs(config))
        return jnp.stack(seen[False]), jnp.stack(seen[True])

    draws = [squares(jax.random.key(seed)) for seed in range(8)]
    encoder, decoder = (np.sqrt(np.mean(part, axis=0)) for part in zip(*draws, strict=True))
    assert (len(encoder), len(decoder)) == (5, 9)
    np.testing.assert_allclose(encoder, 1, atol=0.1)
    assert 0.8 < decoder.min() < decoder.max() < 1.05
    assert decoder[-1] > 0.85


def test_every_parameter_matters_but_the_fourier_features():
    _, grads = value_and_grad(SMALL)
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    still = [jax.tree_util.keystr(path) for path, grad in leaves if not grad.any()]
    assert still == ["['fourier']['frequencies']", "['fourier']['phases']"]


def test_remat_changes_nothing():
    remat = value_and_grad(dataclasses.replace(SMALL, remat=True))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)  # noqa: E731
    jax.tree.map(close, value_and_grad(SMALL), remat)


def test_remat_keeps_fewer_activations():
    def residuals(config):
        """Elements that the forward pass keeps for the backward pass."""
        network = make_edm2_unet(config)

        def backward(params):
            return jax.vjp(lambda p: network.apply(p, *inputs(config)), params)[1]

        return sum(
            leaf.size for leaf in jax.tree.leaves(jax.eval_shape(backward, abstract(config)))
        )

    assert residuals(dataclasses.replace(SMALL, remat=True)) < 0.7 * residuals(SMALL)


def test_dropout_needs_a_key_and_follows_it():
    params = params_of(SMALL)
    plain = forward(SMALL)(params, *inputs(SMALL))
    first, again, other = (
        forward(SMALL)(params, *inputs(SMALL), dropout_key=jax.random.key(seed))
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    assert np.abs(first - plain).max() > 0.1


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
    np.testing.assert_allclose(second[0], first[0], rtol=1e-5, atol=1e-6)
    assert np.abs(second[1:] - first[1:]).max() > 0.1


def test_labels_and_the_null_label():
    apply, params = forward(SMALL), params_of(SMALL)
    x = jnp.broadcast_to(inputs(SMALL)[0][:1], (BATCH, 8, 8, 3))
    by_label = apply(params, x, jnp.zeros(BATCH), {"label": jnp.arange(4)})
    assert len(np.unique(np.asarray(by_label).reshape(4, -1), axis=0)) == 4
    beyond = apply(params, x, jnp.zeros(BATCH), {"label": jnp.full(4, 4)})
    assert jnp.isnan(beyond).all()


def test_condition_must_be_what_the_config_says():
    x, time, condition = inputs(SMALL)
    with pytest.raises(ValueError, match=r"condition has \[\].*num_classes=3 takes \['label'\]"):
        jax.eval_shape(make_edm2_unet(SMALL).apply, abstract(SMALL), x, time)
    free = dataclasses.replace(SMALL, num_classes=0, null_class=False)
    assert "label" not in abstract(free)
    with pytest.raises(ValueError, match=r"condition has \['label'\].*num_classes=0 takes None"):
        jax.eval_shape(make_edm2_unet(free).apply, abstract(free), x, time, condition)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"attention_resolutions": (16,)},
            r"attention_resolutions=\(16,\): the levels have \(8, 4\)",
        ),
        ({"head_channels": 5}, r"head_channels=5: .* \[16\]"),
        ({"image_size": 9, "attention_resolutions": ()}, "image_size=9: must be a multiple of 2"),
        ({"channel_mult": ()}, "channel_mult"),
        ({"channel_mult": (1, 1.5)}, "channel_mult.*whole number"),
        ({"num_res_blocks": 0}, "num_res_blocks=0: must be positive"),
        ({"clip_act": 0.0}, "clip_act=0.0: must be positive"),
        ({"dropout": 1.0}, r"dropout=1.0: must be in \[0, 1\)"),
        ({"res_balance": 1.5}, r"res_balance=1.5: must be in \[0, 1\]"),
        ({"dtype": "float16"}, "dtype='float16': allowed are float32, bfloat16"),
        ({"attention": "cudnn"}, "attention='cudnn': needs dtype='bfloat16'"),
        ({"num_classes": 0}, "null_class=True: needs num_classes"),
        ({"num_classes": -1}, "num_classes=-1: must not be negative"),
    ],
)
def test_what_cannot_be_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **fields)


def test_registry_takes_the_fields_of_the_config_section():
    fields = edm2_unet().to_dict()
    params = jax.eval_shape(MODELS[fields.pop("name")](3, 3, 64, **fields).init, jax.random.key(0))
    assert params == abstract(PIXELS)
