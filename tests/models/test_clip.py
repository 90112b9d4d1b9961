import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from configs import networks
from models.clip import CLIPConfig, make_clip

CONFIG = CLIPConfig(
    in_channels=3,
    out_channels=8,
    image_size=8,
    embedding_dim=8,
    patch_size=4,
    image_width=16,
    image_depth=2,
    image_heads=2,
    vocab_size=20,
    context_length=6,
    text_width=12,
    text_depth=2,
    text_heads=2,
)
NETWORK = make_clip(CONFIG)
PARAMS = jax.jit(NETWORK.init)(jax.random.key(0))
APPLY = jax.jit(NETWORK.apply)
IMAGES = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
TOKENS = jnp.array([[1, 5, 6, 19, 0, 0], [1, 19, 7, 8, 9, 19]])


def test_shapes_and_one_tower_alone():
    out = APPLY(PARAMS, IMAGES, TOKENS)
    assert out.image_embedding.shape == out.text_embedding.shape == (2, 8)
    assert out.text_features.shape == (2, 6, 12)
    assert out.bias is None
    np.testing.assert_allclose(out.scale, 1 / 0.07, rtol=1e-6)
    image, text = APPLY(PARAMS, IMAGES), APPLY(PARAMS, tokens=TOKENS)
    assert image.text_embedding is image.text_features is text.image_embedding is None
    np.testing.assert_allclose(image.image_embedding, out.image_embedding, atol=1e-6)
    np.testing.assert_allclose(text.text_embedding, out.text_embedding, atol=1e-6)


def test_what_comes_after_the_end_reaches_features_and_not_the_embedding():
    changed = TOKENS.at[:, 4].set(3)
    before, after = (APPLY(PARAMS, tokens=t) for t in (TOKENS, changed))
    np.testing.assert_allclose(before.text_embedding, after.text_embedding, atol=1e-6)
    np.testing.assert_allclose(before.text_features[:, :4], after.text_features[:, :4], atol=1e-6)
    assert (np.abs(before.text_features - after.text_features)[:, 4:].max((1, 2)) > 1e-2).all()
    # What comes before the end does reach it.
    other = APPLY(PARAMS, tokens=TOKENS.at[0, 1].set(4)).text_embedding
    assert np.abs(other - before.text_embedding)[0].max() > 1e-2
    np.testing.assert_allclose(other[1], before.text_embedding[1], atol=1e-6)


def test_patches_have_places():
    """The image tower sees every pixel, and where it is."""
    base = APPLY(PARAMS, IMAGES).image_embedding
    for row, column in ((0, 0), (7, 7)):
        changed = APPLY(PARAMS, IMAGES.at[:, row, column].add(3.0)).image_embedding
        assert np.abs(changed - base).max() > 1e-3
    turned = APPLY(PARAMS, jnp.roll(IMAGES, 4, axis=1)).image_embedding
    assert np.abs(turned - base).max() > 1e-3


@pytest.mark.parametrize(("start", "slope"), [(2.0, 1.0), (6.0, 1.0), (6.0, -1.0)])
def test_the_scale_ends_at_100_and_comes_back(start, slope):
    """Above the limit only a gradient that leads back passes."""

    def log_of_scale(log_scale):
        params = PARAMS | {"similarity": {"log_scale": log_scale}}
        return slope * jnp.log(NETWORK.apply(params).scale)

    value, gradient = jax.value_and_grad(log_of_scale)(jnp.float32(start))
    np.testing.assert_allclose(value, slope * min(start, math.log(100)), rtol=1e-6)
    expected = slope if start < math.log(100) or slope > 0 else 0.0
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_bfloat16_and_remat_are_near_float32():
    expected = APPLY(PARAMS, IMAGES, TOKENS)
    config = dataclasses.replace(CONFIG, dtype="bfloat16", remat=True)
    out = jax.jit(make_clip(config).apply)(PARAMS, IMAGES, TOKENS)
    for name in ("image_embedding", "text_embedding", "text_features"):
        ours, exact = getattr(out, name), getattr(expected, name)
        assert ours.dtype == jnp.float32
        assert 0 < np.abs(ours - exact).max() < 0.05 * np.abs(exact).max()


def test_siglip_starts_at_its_bias():
    config = dataclasses.replace(CONFIG, logit_bias=True)
    network = make_clip(config)
    out = network.apply(network.init(jax.random.key(0)))
    np.testing.assert_allclose((out.scale, out.bias), (10.0, -10.0), rtol=1e-6)


def test_the_scale_of_siglip_has_no_limit():
    network = make_clip(dataclasses.replace(CONFIG, logit_bias=True))
    params = network.init(jax.random.key(0))

    def scale(log_scale):
        similarity = params["similarity"] | {"log_scale": log_scale}
        return network.apply(params | {"similarity": similarity}).scale

    # That of the published SO400M at 384 pixels.
    value, slope = jax.value_and_grad(scale)(jnp.float32(4.7215))
    np.testing.assert_allclose((value, slope), math.exp(4.7215), rtol=1e-6)


def test_a_token_beyond_the_table_is_nan():
    out = APPLY(PARAMS, tokens=TOKENS.at[0, 1].set(20))
    assert np.isnan(out.text_embedding[0]).all()
    assert np.isfinite(out.text_embedding[1]).all()


def test_the_fields_are_those_of_the_configs():
    fields = networks.clip().to_dict()
    name = fields.pop("name")
    network = models.MODELS[name](3, 768, 224, **fields)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    assert models.count_parameters(shapes) == pytest.approx(427.62e6, rel=1e-5)
    defaults = {f.name: f.default for f in dataclasses.fields(CLIPConfig)}
    assert fields == {name: defaults[name] for name in fields}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_heads": 3}, "image_heads=3: must divide image_width=16"),
        ({"text_depth": 0}, "text_depth=0: must be positive"),
        ({"patch_size": 3}, "patch_size=3: must divide image_size=8"),
        ({"activation": "relu"}, "activation='relu': allowed are quick_gelu, gelu"),
        ({"end_token": 20}, "end_token=20"),
        ({"out_channels": 9}, "must be embedding_dim=8"),
        ({"attention": "cudnn"}, "bfloat16"),
    ],
)
def test_mistakes_name_the_field(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)
