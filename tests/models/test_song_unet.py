"""DDPM++, NCSN++ and EDM's ADM; their outputs are compared in test_edm_goldens.py."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.networks import FIELDS
from models import MODELS, count_parameters
from models.dhariwal_unet import DhariwalUNetConfig, make_dhariwal_unet
from models.song_unet import SongUNetConfig, make_song_unet

NCSNPP = {"time_embedding": "fourier", "encoder": "residual", "resample_filter": (1, 3, 3, 1)}
SIZES = {"in_channels": 3, "out_channels": 3, "image_size": 8}
SMALL = {
    "channels": 8,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (4,),
    "dropout": 0.5,
    "num_classes": 3,
    "null_class": True,
    "augment_dim": 2,
}
SMALL_NCSNPP = SongUNetConfig(**SIZES, **SMALL, **NCSNPP)
SMALL_ADM = DhariwalUNetConfig(**SIZES, **SMALL, head_channels=8)
CONFIGS = pytest.mark.parametrize("config", [SMALL_NCSNPP, SMALL_ADM], ids=["ncsnpp", "adm"])
BATCH = 4
# These tests run each program once or twice: half the compile time for slower programs.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def make(config):
    song = isinstance(config, SongUNetConfig)
    return make_song_unet(config) if song else make_dhariwal_unet(config)


def abstract(config):
    return jax.eval_shape(make(config).init, jax.random.key(0))


def params_of(config):
    """Random parameters without the zeros that hide most of the network at initialization."""
    rng = np.random.default_rng(7)

    def draw(shape):
        size = 0.3 if len(shape) == 1 else np.prod(shape[:-1]) ** -0.5
        return jnp.asarray(size * rng.standard_normal(shape), jnp.float32)

    return jax.tree.map(lambda leaf: draw(leaf.shape), abstract(config))


def inputs():
    rng = np.random.default_rng(1)
    x, augment = rng.standard_normal((BATCH, 8, 8, 3)), rng.standard_normal((BATCH, 2))
    condition = {"label": jnp.arange(BATCH), "augment": jnp.asarray(augment, jnp.float32)}
    return jnp.asarray(x, jnp.float32), jnp.array([-1.5, 0.0, 0.5, 1.0]), condition


@functools.cache
def forward(config):
    return compiled(make(config).apply)


@pytest.mark.parametrize(
    ("name", "size", "fields", "count"),
    [
        ("song_unet", 32, {"augment_dim": 9}, 55_733_891),
        ("song_unet", 32, {"augment_dim": 9, "num_classes": 10}, 55_735_299),
        # EDM's 56_397_827 and the 128 frequencies, which it keeps beside its parameters.
        ("song_unet", 32, {"augment_dim": 9, **NCSNPP}, 56_397_827 + 128),
        ("song_unet", 64, {"augment_dim": 9, "channel_mult": (1, 2, 2, 2)}, 61_805_571),
        ("dhariwal_unet", 64, {"num_classes": 1000}, 295_899_267),
        ("dhariwal_unet", 64, {"num_classes": 1000, "augment_dim": 9}, 295_900_995),
    ],
    ids=["ddpmpp-cifar10", "ddpmpp-classes", "ncsnpp-cifar10", "ddpmpp-ffhq", "adm", "adm-augment"],
)
def test_parameter_counts_of_edm(name, size, fields, count):
    """As instances of EDM's own classes have them; the other fields are the config's defaults."""
    settings = FIELDS[name]().to_dict() | fields
    del settings["name"]
    params = jax.eval_shape(MODELS[name](3, 3, size, **settings).init, jax.random.key(0))
    assert count_parameters(params) == count
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("name", "settings"),
    [("song_unet", SongUNetConfig(3, 3, 32)), ("dhariwal_unet", DhariwalUNetConfig(3, 3, 64))],
)
def test_config_fields_and_their_defaults_are_those_of_the_network(name, settings):
    fields = dataclasses.asdict(settings)
    for size in SIZES:
        del fields[size]
    assert FIELDS[name]().to_dict() == fields | {"name": name}


def test_initialization_of_song():
    params = compiled(make(SMALL_NCSNPP).init)(jax.random.key(0))

    def width(leaf, gain):
        """Largest entry over gain sqrt(6 / (fan_in + fan_out))."""
        area = np.prod(leaf.shape[:-2])
        return np.abs(leaf).max() / (gain * (6 / (area * sum(leaf.shape[-2:]))) ** 0.5)

    block = params["encoder"]["1"]["blocks"]["0"]
    attention = block["attention"]
    assert 0.9 < width(block["conv1"]["kernel"], 1) <= 1
    assert 0.9 < width(block["conv2"]["kernel"], 1e-5) <= 1
    assert 0.9 < width(attention["qkv"]["kernel"], 0.2**0.5) <= 1
    assert 0.9 < width(attention["projection"]["kernel"], 1e-5) <= 1
    assert 0.9 < width(params["conv_out"]["kernel"], 1e-5) <= 1
    assert 0.8 < width(params["label"]["kernel"], 1) <= 1
    assert not block["conv1"]["bias"].any()
    assert 6 < params["fourier"]["frequencies"].std() < 26


def test_initialization_of_adm():
    params = compiled(make(SMALL_ADM).init)(jax.random.key(0))
    block = params["encoder"]["1"]["blocks"]["0"]
    kernel, bias = block["conv1"]["kernel"], block["conv1"]["bias"]
    bound = (9 * kernel.shape[2]) ** -0.5
    assert 0.9 * bound < np.abs(kernel).max() <= bound
    assert 0.5 * bound < np.abs(bias).max() <= bound
    zeros = (block["conv2"], block["attention"]["projection"], params["conv_out"])
    assert not any(leaf.any() for leaf in jax.tree.leaves((*zeros, params["augment"])))
    assert 0.7 < params["label"]["kernel"].std() < 1.3


@functools.cache
def gradients(config):
    def loss(params):
        output = make(config).apply(params, *inputs(), dropout_key=jax.random.key(0))
        return jnp.square(output).mean()

    return compiled(jax.grad(loss))(params_of(config))


@CONFIGS
def test_every_parameter_but_the_frequencies_is_trained(config):
    leaves = jax.tree_util.tree_leaves_with_path(gradients(config))
    still = [jax.tree_util.keystr(path) for path, grad in leaves if not grad.any()]
    fourier = isinstance(config, SongUNetConfig)
    assert still == (["['fourier']['frequencies']"] if fourier else [])


def test_remat_changes_nothing():
    remat = gradients(dataclasses.replace(SMALL_NCSNPP, remat=True))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # noqa: E731
    jax.tree.map(close, gradients(SMALL_NCSNPP), remat)


@CONFIGS
def test_no_augmentation_and_no_label_are_zeros(config):
    params = params_of(config)
    x, time, condition = inputs()
    apply = forward(config)
    # The last label is "none": a row of zeros, in place of which any row may be emptied.
    null = apply(params, x, time, condition | {"label": jnp.full(BATCH, 3)})
    emptied = jax.tree.map(jnp.array, params)
    emptied["label"]["kernel"] = emptied["label"]["kernel"].at[1].set(0)
    same = apply(emptied, x, time, condition | {"label": jnp.full(BATCH, 1)})
    np.testing.assert_allclose(null, same, rtol=1e-5, atol=1e-6)

    zeros = apply(params, x, time, condition | {"augment": jnp.zeros((BATCH, 2))})
    without = apply(params, x, time, {"label": condition["label"]})
    np.testing.assert_allclose(without, zeros, rtol=1e-5, atol=1e-6)
    assert np.abs(without - apply(params, x, time, condition)).max() > 0.01
    beyond = apply(params, x, time, condition | {"label": jnp.full(BATCH, 4)})
    assert jnp.isnan(beyond).all()


@CONFIGS
def test_images_of_a_batch_do_not_touch(config):
    apply, params = forward(config), params_of(config)
    first = apply(params, *inputs())
    # Every other image, time and condition changes; those of the first stay.
    second = apply(params, *jax.tree.map(lambda a: a.at[1:].set(a[:1]), inputs()))
    np.testing.assert_allclose(second[0], first[0], rtol=1e-5, atol=1e-6)
    assert np.abs(second[1:] - first[1:]).max() > 0.1


@CONFIGS
def test_bfloat16_is_close_and_gives_float32(config):
    params = params_of(config)
    exact = forward(config)(params, *inputs())
    output = forward(dataclasses.replace(config, dtype="bfloat16"))(params, *inputs())
    assert output.dtype == jnp.float32
    assert 0 < jnp.abs(output - exact).max() < 0.05 * jnp.abs(exact).max()


def test_condition_must_be_what_the_config_says():
    x, time, condition = inputs()
    call = functools.partial(jax.eval_shape, make(SMALL_ADM).apply, abstract(SMALL_ADM), x, time)
    with pytest.raises(ValueError, match=r"has \['augment'\].* takes \['augment', 'label'\]"):
        call({"augment": condition["augment"]})
    with pytest.raises(ValueError, match=r"\(4, 9\), but augment_dim=2 takes \[batch, 2\]"):
        call(condition | {"augment": jnp.zeros((BATCH, 9))})
    plain = dataclasses.replace(SMALL_ADM, num_classes=0, null_class=False, augment_dim=0)
    with pytest.raises(ValueError, match=r"has \['augment', 'label'\].* takes None"):
        jax.eval_shape(make(plain).apply, abstract(plain), x, time, condition)


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (SMALL_NCSNPP, {"time_embedding": "fourrier"}, "did you mean 'fourier'"),
        (SMALL_NCSNPP, {"encoder": "skip"}, "encoder='skip': allowed are standard, residual"),
        (SMALL_NCSNPP, {"resample_filter": (1, 2, 1)}, r"allowed are \(1, 1\), \(1, 3, 3, 1\)"),
        (SMALL_NCSNPP, {"attention_resolutions": (16,)}, r"\(16,\): the levels have \(8, 4\)"),
        (SMALL_NCSNPP, {"channels": 10}, "channels=10: must be a positive multiple of 4"),
        (SMALL_NCSNPP, {"channels": 132}, r"channels=132: gives norms of \[132, 264"),
        (SMALL_NCSNPP, {"image_size": 9, "attention_resolutions": ()}, "must be a multiple of 2"),
        (SMALL_NCSNPP, {"dropout": 1.0}, r"dropout=1.0: must be in \[0, 1\)"),
        (SMALL_NCSNPP, {"num_classes": 0}, "null_class=True: needs num_classes"),
        (SMALL_NCSNPP, {"num_res_blocks": 0}, "num_res_blocks=0: must be positive"),
        (SMALL_NCSNPP, {"augment_dim": -1}, "augment_dim=-1: must not be negative"),
        (SMALL_NCSNPP, {"channel_mult": ()}, "needs at least one level"),
        (SMALL_NCSNPP, {"dtype": "float16"}, "dtype='float16': allowed are float32, bfloat16"),
        (SMALL_NCSNPP, {"attention": "cudnn"}, "attention='cudnn': needs dtype='bfloat16'"),
        (SMALL_ADM, {"head_channels": 12}, r"head_channels=12: must divide .* \[16\]"),
    ],
)
def test_what_cannot_be_is_named(config, fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **fields)
