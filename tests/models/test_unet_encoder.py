import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.pretrained.openai import unet_encoder_from_openai
from models.unet_encoder import UNetEncoderConfig, make_unet_encoder
from tests.golden.models import generated
from tests.models.pretrained.test_unets import ADM, golden, relative_error

FIELDS = {f.name: getattr(ADM, f.name) for f in dataclasses.fields(ADM)} | {"out_channels": 10}
CLASSIFIER = UNetEncoderConfig(**FIELDS)
SMALL = UNetEncoderConfig(
    in_channels=1,
    out_channels=5,
    image_size=8,
    channels=8,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    norm_groups=4,
    num_classes=5,
)


def test_guided_diffusions_classifier():
    """And of its gradient's direction there is no doubt then either."""
    _, tensors, expected = golden("guided_diffusion_classifier")
    params = unet_encoder_from_openai(tensors, CLASSIFIER, new_attention_order=True)
    x = generated.images(len(generated.TIMES), 3, 16).transpose(0, 2, 3, 1)
    logits = jax.jit(make_unet_encoder(CLASSIFIER).apply)(params, x, np.array(generated.TIMES))
    assert logits.dtype == jnp.float32
    assert relative_error(np.asarray(logits), expected) < 1e-5


def test_a_file_that_does_not_fit_is_refused():
    _, tensors, _ = golden("guided_diffusion_classifier")
    lacking = {k: v for k, v in tensors.items() if not k.startswith("out.2.c_proj")}
    with pytest.raises(ValueError, match=r"out.2.c_proj.weight for pool/projection/kernel"):
        unet_encoder_from_openai(lacking, CLASSIFIER, new_attention_order=True)


@pytest.mark.parametrize("pool", ["attention", "mean"])
def test_logits_of_noisy_images(pool):
    config = dataclasses.replace(SMALL, pool=pool)
    network = make_unet_encoder(config)
    params = jax.jit(network.init)(jax.random.key(0))
    assert ("positions" in params["pool"]) == (pool == "attention")
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    run = jax.jit(network.apply)
    logits = run(params, x, jnp.array([3, 500]))
    assert logits.shape == (2, 5)
    if pool == "mean":
        # At the start all classes are alike.
        np.testing.assert_array_equal(logits, 0.0)
    params = jax.tree.map(lambda p: p + 0.1, params)
    logits, later = (run(params, x, jnp.array([t, 500])) for t in (3, 700))
    assert not np.allclose(logits[0], later[0])
    np.testing.assert_array_equal(logits[1], later[1])


def test_without_attention_but_the_pools():
    """The U-Net's `middle_attention` is the encoder's, too."""
    config = dataclasses.replace(
        SMALL, attention_resolutions=(), middle_attention=False, pool="mean"
    )
    network = make_unet_encoder(config)
    params = jax.eval_shape(network.init, jax.random.key(0))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert not any("attention" in path for path in paths)
    # Of any size that the levels can halve.
    for side in (8, 12):
        x = jax.ShapeDtypeStruct((2, side, side, 1), jnp.float32)
        times = jax.ShapeDtypeStruct((2,), jnp.float32)
        assert jax.eval_shape(network.apply, params, x, times).shape == (2, 5)


def test_patches_are_its_pixels():
    config = dataclasses.replace(SMALL, image_size=16, patch_size=2)
    params = jax.eval_shape(make_unet_encoder(config).init, jax.random.key(0))
    assert params["conv_in"]["kernel"].shape == (3, 3, 4, 8)
    x = jax.ShapeDtypeStruct((2, 16, 16, 1), jnp.float32)
    times = jax.ShapeDtypeStruct((2,), jnp.float32)
    assert jax.eval_shape(make_unet_encoder(config).apply, params, x, times).shape == (2, 5)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pool", "max", "pool='max': allowed are 'attention' and 'mean'"),
        ("null_class", True, "null_class=True: an encoder is told time alone"),
        ("embedding_dim", 4, "embedding_dim=4: an encoder"),
    ],
)
def test_settings_are_checked(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **{field: value})
