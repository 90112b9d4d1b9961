import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusion
import models
from configs import shapes_sr
from input_pipeline.decoder import Decoder
from input_pipeline.degradations import degrade
from input_pipeline.resize import resize
from input_pipeline.sources import shapes_render
from input_pipeline.sources.base import Source
from training import command_line, sampler, tasks
from training.components import ConfigError
from training.config import freeze, validate
from training.tasks import super_resolution
from training.tasks.super_resolution import AUGMENTATION, LOW

KEY = jax.random.key(0)
# As in the quick recipe of configs/shapes_sr.py: patches, and the residual is predicted.
TASK = "super_resolution(low=8, noise=(0.1, 0.3), crop=0.5, residual=True, sampling_noise=0.1)"


def make_config(task=TASK, **model):
    config = shapes_sr.get_config()
    config.task = task
    config.data.image_size = 16
    config.diffusion.parameterization = "x0" if "residual" in task else "eps"
    config.model.update(channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=4)
    config.model.patch_size = 2
    config.model.update(model)
    config.log.preview_count = 2
    config.sample.update(steps=2, count=2)
    validate(config)
    return freeze(config)


class Held(Source):
    """In place of a split on disk."""

    name = fingerprint = "held"
    fields = ("image",)

    def __len__(self):
        return 5

    def example(self, index, fields):
        return {"image": shapes_render.render(shapes_render.scene("test", index), 16)}


def make_task(*args, **model):
    task = tasks.make_task(make_config(*args, **model))
    task._held_out_source = Decoder(Held(), 16, 3, ("image",), "raise")
    return task


@pytest.fixture(scope="module")
def task():
    return make_task()


@pytest.fixture(scope="module")
def params(task):
    """Random, also where the network begins at zero."""
    rng = np.random.default_rng(0)
    abstract = jax.eval_shape(task.init, KEY)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), abstract)


@pytest.fixture(scope="module")
def batch():
    drawn = [shapes_render.render(shapes_render.scene("test", i), 16) for i in range(6)]
    return {"image": np.stack(drawn)}


def test_is_a_task(task):
    assert isinstance(task, tasks.Task)
    assert task.scalars == (AUGMENTATION,)


def test_examples_are_the_same_crops_of_both(task, batch):
    images, told = task.examples(batch, KEY, KEY)
    assert images.shape == told[LOW].shape == (6, 8, 8, 3)
    assert told[AUGMENTATION].min() >= 0.1
    assert told[AUGMENTATION].max() <= 0.3
    assert len(np.unique(told[AUGMENTATION])) == 6
    whole = np.asarray(diffusion.to_model(batch["image"]))
    for n, crop in enumerate(images):
        windows = np.lib.stride_tricks.sliding_window_view(whole[n], (8, 8), axis=(0, 1))
        found = np.argwhere(np.all(windows == np.moveaxis(crop, -1, 0), axis=(2, 3, 4)))
        assert len(found)
    # They begin with a low-resolution pixel, as whole images do; without noise the low-resolution
    # part is the crop of the enlarged image.
    plain = make_task("super_resolution(low=8, degradation='none', noise=(0, 0), crop=0.5)")
    assert plain.scalars == ()
    images, told = plain.examples(batch, KEY, KEY)
    small = degrade(jnp.asarray(whole), KEY, 8, "none")
    large = np.asarray(resize(small, (16, 16), "bicubic"))
    for n, (crop, low) in enumerate(zip(images, told[LOW], strict=True)):
        windows = np.lib.stride_tricks.sliding_window_view(whole[n], (8, 8), axis=(0, 1))
        places = np.argwhere(np.all(windows == np.moveaxis(crop, -1, 0), axis=(2, 3, 4)))
        assert any(
            np.allclose(low, large[n, y : y + 8, x : x + 8], atol=1e-5)
            for y, x in places
            if y % 2 == x % 2 == 0
        )


def test_crops_are_everywhere():
    images = jnp.broadcast_to(jnp.arange(16.0)[:, None, None], (400, 16, 16, 1))
    rows = np.asarray(super_resolution._crops(images, 8, 8, KEY))[:, 0, 0, 0]
    assert set(rows) == {0, 2, 4, 6, 8}
    rows = np.asarray(super_resolution._crops(images, 8, 6, KEY))[:, 0, 0, 0]
    assert set(rows) == set(range(9))


def test_the_network_sees_the_low_image_and_its_noise_level(task, params):
    x, time = jnp.ones((2, 8, 8, 3)), jnp.zeros(2)
    told = {LOW: jnp.zeros((2, 8, 8, 3)), AUGMENTATION: jnp.array([0.1, 0.1])}
    apply = jax.jit(task.network.apply)
    base = apply(params, x, time, told)
    level = apply(params, x, time, told | {AUGMENTATION: jnp.array([0.1, 0.3])})
    np.testing.assert_array_equal(base[0], level[0])
    assert abs(base[1] - level[1]).max() > 1e-3
    low = apply(params, x, time, told | {LOW: told[LOW].at[1, 4, 4].set(1.0)})
    np.testing.assert_array_equal(base[0], low[0])
    assert abs(base[1] - low[1]).max() > 1e-3


def test_with_residual_an_untrained_network_enlarges(task):
    """Its last convolution is zero at the start; without `residual` so is its output."""
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(task.init, KEY)
    )
    x = jax.random.normal(KEY, (2, 8, 8, 3))
    told = {LOW: x[::-1], AUGMENTATION: jnp.array([0.1, 0.1])}
    np.testing.assert_array_equal(task.network.apply(zeros, x, jnp.zeros(2), told), x[::-1])
    plain = make_task(TASK.replace("residual=True", "residual=False"))
    np.testing.assert_array_equal(plain.network.apply(zeros, x, jnp.zeros(2), told), 0)


def test_loss_and_its_gradient_reach_everything(task, params, batch):
    def loss(params):
        return task.loss(params, {}, batch, KEY)[0]

    value, slopes = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value)
    flat = jax.tree_util.tree_leaves_with_path(slopes)
    assert all(np.any(leaf != 0) for path, leaf in flat)


def test_samples_are_of_held_out_images_and_of_their_index_alone(task, params):
    told = task.sample_condition(np.array([3, 0, 8]))
    again = task.sample_condition(np.array([3]))
    np.testing.assert_array_equal(told[LOW][0], again[LOW][0])
    assert told[LOW].shape == (3, 16, 16, 3)
    np.testing.assert_allclose(told[AUGMENTATION], 0.1)
    # Image 8 is image 3 of five, with other noise.
    true = task.true_images(np.array([3, 0, 8]))
    np.testing.assert_array_equal(true[0], true[2])
    assert not np.array_equal(told[LOW][0], told[LOW][2])
    assert abs(told[LOW][0] - told[LOW][2]).mean() < abs(told[LOW][0] - told[LOW][1]).mean()


def test_samples_at_full_size_and_the_preview_beside_them(task, params):
    """Trained on 8 px, sampled at 16; the sample depends on what it is told."""
    indices = np.arange(2, dtype=np.int32)
    draw = sampler.build_sampler(task.config, task)
    told = task.sample_condition(indices)
    labels = np.zeros_like(indices)
    samples = draw(params, KEY, indices, labels, told)
    assert samples.shape == (2, 16, 16, 3)
    other = draw(params, KEY, indices, labels, told | {LOW: -told[LOW]})
    assert abs(samples - other).max() > 1e-2
    pictures = task.preview(params, KEY)
    assert pictures.shape == (2, 16, 48, 3)
    np.testing.assert_array_equal(
        diffusion.to_uint8(pictures[:, :, 32:]), task.true_images(indices)
    )
    np.testing.assert_allclose(pictures[:, :, 16:32], samples, atol=1 / 127)


def test_another_models_images_are_made_large(task, params):
    """Each row by itself: by its image, its index and the key, wherever it stands."""
    low = np.asarray(resize(diffusion.to_model(task.true_images(np.arange(3))), (8, 8), "area"))
    indices = np.array([5, 0, 7], np.int32)
    images = np.asarray(task.sample(params, low, KEY, indices))
    assert images.shape == (3, 16, 16, 3)
    assert abs(images).max() <= 1
    others = np.stack([low[2], low[2], low[0]])
    moved = np.asarray(task.sample(params, others, KEY, np.array([7, 1, 5], np.int32)))
    np.testing.assert_array_equal(moved[[2, 0]], images[[0, 2]])
    # Another index, key or image is another sample.
    assert abs(moved[1] - images[2]).mean() > 1e-3
    rekeyed = np.asarray(task.sample(params, low, jax.random.key(1), indices))
    assert abs(rekeyed - images).mean((1, 2, 3)).min() > 1e-3
    assert task._upsample._cache_size() == 1


def test_images_of_another_size_are_refused(task, params):
    with pytest.raises(ValueError, match=r"\(1, 16, 16, 3\): this upsampler takes images of 8 px"):
        task.sample(params, np.zeros((1, 16, 16, 3), np.float32), KEY, np.zeros(1, np.int32))


def test_the_network_has_no_attention(params):
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert any("middle" in name for name in names)
    assert not any("attention" in name for name in names)


def test_without_a_low_image_it_says_what_is_missing(task, params):
    with pytest.raises(ValueError, match="has to be told low-resolution images"):
        task.network.apply(params, jnp.ones((1, 8, 8, 3)), jnp.zeros(1), None)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("super_resolution(low=16)", "low=16 must be below"),
        ("super_resolution(low=8, degradation='jpeg')", "degradation='jpeg': take 'none', 'blur'"),
        ("super_resolution(low=8, noise=(0.4, 0.2))", "the lower one first"),
        ("super_resolution(low=8, noise=(0.1, 0.2))", "in the range of training"),
        ("super_resolution(low=8, crop=0.0)", "a share of the side"),
        ("super_resolution(low=8, crop=0.4375)", "7 px, which must be a multiple of 4"),
        ("super_resolution(low=8, crop=0.375)", "6 px, which must be a multiple of 4"),
        ("super_resolution(low=8, blur=2.0)", "probability"),
        ("super_resolution(low=8, reduction='box')", "reduction='box': take 'bilinear', 'bicubic'"),
    ],
)
def test_mistakes(task, message):
    with pytest.raises(ConfigError, match=message):
        make_task(task)


def test_a_residual_is_of_the_image():
    config = shapes_sr.get_config()
    config.task = "super_resolution(low=16, residual=True)"
    with pytest.raises(ConfigError, match="parameterization = 'x0' \\('eps' is another quantity"):
        tasks.make_task(freeze(config))


def test_crops_need_a_network_without_attention():
    with pytest.raises(ConfigError, match="must have no attention"):
        make_task(middle_attention=True)
    assert make_task(TASK.replace("crop=0.5", "crop=1.0"), middle_attention=True)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("configs/upsamplers_paper.py", 700), ("configs/upsamplers_paper.py:1024", 300)],
)
def test_the_papers_upsamplers_have_its_sizes(name, millions):
    assert count(name) == pytest.approx(millions * 1e6, rel=0.1)


def test_the_first_one_is_karlos():
    counts = Path(__file__).parents[2] / "golden" / "models" / "counts.json"
    assert count("configs/upsamplers_paper.py") == json.loads(counts.read_text())["karlo-sr"]


def count(name):
    task = tasks.make_task(freeze(command_line.read(name)))
    return models.count_parameters(jax.eval_shape(task.init, KEY))
