"""The decoder's task: what is withheld how often, sizes, samples and their guidance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

import diffusion
from configs import base, networks
from input_pipeline.convert import convert
from input_pipeline.sources.base import Source
from models.caption import NO_IMAGE, NO_TEXT
from pipelines import sampling
from tests.training.tasks.descent import descend
from training import checkpoints, loop, sampler, tasks
from training.components import ConfigError
from training.config import freeze, validate
from training.mesh import make_mesh
from training.workdir import Workdir

DIM, WORDS, SIZE = 4, 3, 16
KEY = jax.random.key(0)
CFG = ("classifier_free(scale=3.0)",)
MODEL = {
    "channels": 8,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    # In the middle alone.
    "attention_resolutions": (),
    "head_channels": 8,
    "norm_groups": 4,
    "dropout": 0.0,
    "embedding_dim": DIM,
    "image_tokens": 2,
    "text_width": 8,
    "context_length": WORDS,
    "vocab_size": 9,
    "text_depth": 1,
    "text_heads": 2,
}
FEATURES = {"text_dim": 5, "text_depth": 0}


class Squares(Source):
    """Squares of one colour, which the embedding says, on a ground whose grey the caption says."""

    name = fingerprint = "squares"
    fields = (
        "image",
        "image_embedding",
        "text_embedding",
        "tokens",
        "text_mask",
        "text_features",
    )

    def __init__(self, first=0):
        self.first = first

    def __len__(self):
        return 12

    def example(self, index, fields):
        random = np.random.RandomState(self.first + index)
        embedding = random.standard_normal(DIM)
        word = random.randint(1, 8)
        image = np.full((SIZE, SIZE, 3), 16 * word)
        image[4:12, 4:12] = 127.5 + 100 * np.tanh(embedding[:3])
        length = random.randint(2, WORDS + 1)
        return {
            "image": image.astype(np.uint8),
            "image_embedding": (embedding / np.linalg.norm(embedding)).astype(np.float32),
            "text_embedding": np.eye(DIM, dtype=np.float32)[word % DIM],
            "tokens": np.array([word, 8, 0] if length == 2 else [word, word, 8], np.int32),
            "text_mask": np.arange(WORDS) < length,
            "text_features": random.standard_normal((WORDS, 5)).astype(np.float32),
        }


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """As files: `records` keeps arrays."""
    path = tmp_path_factory.mktemp("squares")
    for first, split in ((0, "train"), (100, "test")):
        convert(Squares(first), path, split, image_size=SIZE, channels=3)
    return f"records(path={str(path)!r}, split='train')"


def make_config(records, task="decoder(size=8)", guidance=(), **model):
    config = base.get_config()
    config.task = task
    config.data.update(source=records, image_size=SIZE, channels=3)
    config.model = networks.unclip_decoder()
    config.model.update(MODEL | model)
    config.diffusion.update(schedule="cosine(timesteps=1000)", loss="hybrid")
    config.diffusion.variance = "learned_range"
    config.log.update(preview_count=2, every=1, preview_every=2, tensorboard=False)
    config.sample.update(steps=2, count=3, batch_size=4, guidance=guidance)
    config.train.update(steps=2, batch_size=8)
    config.optimizer.warmup_steps = 0
    config.checkpoint.every = 2
    validate(config)
    return freeze(config)


@pytest.fixture(scope="module")
def make(records):
    """One task of each config."""
    return functools.cache(
        lambda *args, **model: tasks.make_task(make_config(records, *args, **model))
    )


@pytest.fixture(scope="module")
def task(make):
    return make("decoder(size=8)", CFG)


@pytest.fixture(scope="module")
def params(task):
    return random_params(task)


def random_params(task):
    """Also where the network begins at zero."""
    shapes, random = jax.eval_shape(task.init, KEY), np.random.RandomState(0)
    draw = lambda s: (0.4 * random.standard_normal(s.shape)).astype("float32")  # noqa: E731
    return jax.tree.map(draw, shapes)


@pytest.fixture(scope="module")
def batch():
    rows = [Squares().example(i, ()) for i in range(8)]
    return {name: np.stack([row[name] for row in rows]) for name in Squares.fields}


def told(batch, rows=slice(None), **fields):
    names = ("image_embedding", "tokens", "text_mask")
    return {name: batch[name][rows] for name in names} | fields


def test_is_a_task_with_the_fields_of_its_network(task, make):
    assert isinstance(task, tasks.Task)
    spec = task.batch_spec(8)
    assert {name: (s.shape[1:], s.dtype) for name, s in spec.items()} == {
        "image": ((SIZE, SIZE, 3), jnp.uint8),
        "image_embedding": ((DIM,), jnp.float32),
        "tokens": ((WORDS,), jnp.int32),
        "text_mask": ((WORDS,), jnp.bool_),
    }
    names = ["image", "image_embedding", "text_embedding", "text_features", "text_mask"]
    assert sorted(make(**FEATURES).batch_spec(8)) == names
    assert sorted(make(context_length=0).batch_spec(8)) == ["image", "image_embedding"]


def test_images_are_reduced_by_areas(task, make, batch):
    images, _ = task.examples(batch, KEY, KEY)
    whole, _ = make("decoder").examples(batch, KEY, KEY)
    assert whole.shape == (8, SIZE, SIZE, 3)
    np.testing.assert_array_equal(whole, diffusion.to_model(jnp.asarray(batch["image"])))
    mean = np.asarray(whole).reshape(8, 8, 2, 8, 2, 3).mean((2, 4))
    np.testing.assert_allclose(images, mean, atol=1e-6)
    assert task.image_shape == (8, 8, 3)


def test_both_are_withheld_at_their_rates_and_independently(make):
    count = 40_000
    many = {
        "image_embedding": np.ones((count, DIM), np.float32),
        "tokens": np.ones((count, WORDS), np.int32),
        "text_mask": np.ones((count, WORDS), bool),
    }
    condition = make("decoder(embedding_dropout=0.1, caption_dropout=0.5)").condition(many, KEY)
    image, text = np.asarray(condition[NO_IMAGE]), np.asarray(condition[NO_TEXT])
    # Four standard deviations of a share of 40 000 are 0.01 or less.
    assert image.mean() == pytest.approx(0.1, abs=0.01)
    assert text.mean() == pytest.approx(0.5, abs=0.01)
    assert (image & text).mean() == pytest.approx(0.05, abs=0.01)
    np.testing.assert_array_equal(condition["image_embedding"], many["image_embedding"])
    other = make("decoder(embedding_dropout=0.1, caption_dropout=0.5)").condition(
        many, jax.random.key(1)
    )
    assert np.any(other[NO_TEXT] != text)
    always = make("decoder(embedding_dropout=1.0, caption_dropout=0.0)").condition(many, KEY)
    assert np.all(always[NO_IMAGE])
    assert not np.any(always[NO_TEXT])


@pytest.mark.parametrize(
    ("rates", "fields", "null"),
    [
        ((0.1, 0.5), {}, {NO_IMAGE: True, NO_TEXT: True}),
        ((0.1, 0.0), {}, {NO_IMAGE: True}),
        ((0.0, 0.5), {}, {NO_TEXT: True}),
        ((0.0, 0.0), {}, None),
        ((0.1, 0.5), {"context_length": 0}, {NO_IMAGE: True}),
    ],
)
def test_what_was_withheld_is_what_guidance_compares_with(make, rates, fields, null):
    task = make("decoder(embedding_dropout={}, caption_dropout={})".format(*rates), **fields)
    assert task.null == null


@pytest.mark.parametrize(
    ("rates", "null"),
    [((0.1, 0.5), {NO_TEXT: True}), ((0.1, 0.0), None), ((0.0, 0.5), {NO_TEXT: True})],
)
def test_guidance_by_the_caption_alone(make, rates, null):
    rates = "embedding_dropout={}, caption_dropout={}".format(*rates)
    assert make(f"decoder({rates}, guided_by='caption')").null == null


def test_what_is_not_given_is_withheld(task, params, batch):
    """And the sample does not depend on it then."""
    draw = functools.partial(task.sample, params, key=KEY)
    full = draw(told(batch))
    alone = draw({"image_embedding": batch["image_embedding"]})
    flagged = draw(told(batch, no_text=np.ones(8, bool)))
    np.testing.assert_array_equal(alone, flagged)
    caption = {name: batch[name] for name in ("tokens", "text_mask")}
    words = draw(caption)
    np.testing.assert_array_equal(words, draw(told(batch, no_image=np.ones(8, bool))))
    for other in (alone, words):
        assert np.abs(other - full).max((1, 2, 3)).min() > 1e-3
    with pytest.raises(ValueError, match="may be left out, not both"):
        task.told({"tokens": batch["tokens"]})
    with pytest.raises(ValueError, match="may be left out, not both"):
        task.told({})


def test_a_sample_depends_on_key_number_and_its_own_condition_alone(task, params, batch):
    whole = np.asarray(task.sample(params, told(batch), KEY))
    assert whole.shape == (8, 8, 8, 3)
    assert np.abs(whole).max() <= 1
    order = np.array([6, 1, 7, 0, 3, 2, 5, 4])
    moved = task.sample(params, told(batch, order), KEY, order.astype(np.int32))
    np.testing.assert_array_equal(moved, whole[order])
    other = told(batch)
    other["image_embedding"] = other["image_embedding"].copy()
    other["image_embedding"][2] *= -1
    changed = np.asarray(task.sample(params, other, KEY))
    np.testing.assert_array_equal(np.delete(changed, 2, 0), np.delete(whole, 2, 0))
    assert np.abs(changed - whole)[2].max() > 1e-3
    numbers = np.arange(8, dtype=np.int32)
    numbers[4] = 77
    renumbered = np.asarray(task.sample(params, told(batch), KEY, numbers))
    assert list(np.abs(renumbered - whole).max((1, 2, 3)) > 1e-3) == [n == 4 for n in range(8)]


def test_guidance_of_scale_1_is_none_and_other_scales_compile_nothing(task, make, params, batch):
    plain = make("decoder(size=8)").sample(params, told(batch), KEY)
    draw = functools.partial(task.sample, params, told(batch), KEY)
    three = draw()
    compiled = task.sampler._program._cache_size()
    one = draw(guidances=("classifier_free(scale=1.0)",))
    np.testing.assert_allclose(one, plain, atol=1e-5)
    seven = draw(guidances=("classifier_free(scale=7.0)",))
    np.testing.assert_array_equal(draw(guidances=CFG), three)
    assert task.sampler._program._cache_size() == compiled
    for a, b in ((one, three), (three, seven)):
        assert np.abs(a - b).max((1, 2, 3)).min() > 1e-3
    assert task.sampler.calls_per_image == 4
    with pytest.raises(ConfigError, match="must be those of the config"):
        draw(guidances=())


@pytest.mark.parametrize("absent", [(NO_IMAGE, NO_TEXT), (NO_TEXT,)])
def test_guidance_moves_away_from_what_is_withheld(make, params, batch, absent):
    """What the sampler's denoiser says is null + scale (conditional - null)."""
    by = "both" if NO_IMAGE in absent else "caption"
    task = make(f"decoder(size=8, guided_by='{by}')", CFG)
    x = jax.random.normal(KEY, (8, 8, 8, 3))
    condition = task.told(told(batch))
    null = condition | {name: jnp.ones(8, bool) for name in absent}
    level = task.schedule.level(jnp.float32(600.0))

    @jax.jit
    def predict(params):
        plain = sampler.guidance.denoiser_of(task, params)
        guided = diffusion.guide(plain, task.sampler.guidances, task.parameterization, task.null)
        return [
            denoise(x, level, c).x0
            for denoise, c in ((plain, condition), (plain, null), (guided, condition))
        ]

    own, without, guided = predict(params)
    np.testing.assert_allclose(guided, without + 3.0 * (own - without), rtol=1e-4, atol=1e-4)
    assert np.abs(own - without).max() > 1e-2


def test_features_of_clip_in_place_of_tokens(make, batch):
    task = make("decoder(size=8)", **FEATURES)
    params = random_params(task)
    loss, (metrics, _) = jax.jit(task.loss)(params, {}, batch, KEY)
    assert np.isfinite(loss)
    # The network has a learned variance.
    assert metrics["vlb_bits"] > 0
    condition = task.condition(batch, KEY)
    for name in ("image_embedding", "text_embedding", "text_features", "text_mask"):
        np.testing.assert_array_equal(condition[name], batch[name])


@pytest.mark.parametrize(
    "fields",
    [{}, {"context": "cross", "channel_mult": (1,), **FEATURES}],
    ids=["kv", "cross"],
)
def test_training_lowers_the_loss_and_both_conditions_do(records, batch, fields):
    """Of pure noise, embedding and caption say all of the image that can be known."""
    rates = "embedding_dropout=0.1, caption_dropout=0.1"
    config = make_config(records, f"decoder(size=8, {rates})", **fields)
    config = ConfigDict(config.to_dict())
    config.diffusion.update(parameterization="x0", loss="simple", variance="fixed")
    task = tasks.make_task(config)
    rngs = jax.random.split(KEY, 150)
    params, losses = descend(task, task.init(KEY), batch, rngs, optax.adam(1e-2))
    assert np.mean(losses[-20:]) < 0.3 * np.mean(losses[:5])

    images, _ = task.examples(batch, KEY, KEY)
    x, time = jax.random.normal(KEY, images.shape), jnp.full(8, 999.0)
    apply = jax.jit(task.network.apply)

    def error(condition):
        return jnp.square(apply(params, x, time, condition) - images).mean()

    condition = task.told(batch)
    full = error(condition)
    for name in (NO_IMAGE, NO_TEXT):
        assert error(condition | {name: jnp.ones(8, bool)}) > 1.5 * full, name


def test_samples_and_previews_are_of_held_out_examples(task, params):
    indices = np.array([2, 0, 14], np.int32)
    condition = task.sample_condition(indices)
    wanted = [Squares(100).example(i, ()) for i in (2, 0, 2)]
    for name in ("image_embedding", "tokens", "text_mask"):
        np.testing.assert_array_equal(condition[name], np.stack([row[name] for row in wanted]))
    assert not condition[NO_IMAGE].any()
    true = task.true_images(indices)
    expected = wanted[1]["image"].reshape(8, 2, 8, 2, 3).mean((1, 3))
    np.testing.assert_allclose(true[1], expected, atol=1)
    pictures = task.preview(params, KEY)
    assert pictures.shape == (2, 8, 16, 3)
    first = np.arange(2, dtype=np.int32)
    np.testing.assert_array_equal(diffusion.to_uint8(pictures[:, :, 8:]), task.true_images(first))
    told = task.sample_condition(first)
    samples = task.sample(params, told, KEY)
    np.testing.assert_allclose(pictures[:, :, :8], samples, atol=1 / 127)


@pytest.mark.slow
def test_train_then_sample(records, tmp_path):
    """The jobs: training reads records, --mode=sample makes image i of held-out example i."""
    config = make_config(records, "decoder(size=8)", CFG)
    loop.train(config, str(tmp_path))
    assert (tmp_path / "checkpoints" / "2").exists()
    sampling.sample(config, tmp_path)
    (out,) = (tmp_path / "samples").iterdir()
    images = np.load(out / "samples.npz")["arr_0"]
    assert images.shape == (3, 8, 8, 3)
    task, mesh = tasks.make_task(config), make_mesh(**config.mesh)
    params, _ = checkpoints.restore_for_sampling(
        Workdir(tmp_path).checkpoints, "default", task.init, mesh, -1, averages=config.ema
    )
    told = task.sample_condition(np.arange(3, dtype=np.int32))
    expected = task.sample(params, told, jax.random.key(config.sample.seed))
    np.testing.assert_allclose(images, diffusion.to_uint8(expected), atol=1)
    assert np.ptp(images, axis=0).max() > 10


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("decoder(size=16)", "size=16 must be below config.data.image_size = 16, or 0"),
        ("decoder(size=-1)", "size=-1 must be below"),
        ("decoder(guided_by='image')", "guided_by='image' must be 'both' or 'caption'"),
        ("decoder(embedding_dropout=1.5)", "embedding_dropout=1.5 is a probability"),
        ("decoder(caption_dropout=-0.1)", "caption_dropout=-0.1 is a probability"),
    ],
)
def test_mistakes(make, task, message):
    with pytest.raises(ConfigError, match=message):
        make(task)


def test_more_mistakes(records, make):
    config = ConfigDict(make_config(records).to_dict())
    config.model = networks.unet()
    message = r"config\.model\.name must be one of 'unclip_decoder', 'unclip_dit', not 'unet'"
    with pytest.raises(ConfigError, match=message):
        tasks.make_task(config)
    with pytest.raises(ConfigError, match="knows labels and 'no label'"):
        _ = make("decoder(embedding_dropout=0, caption_dropout=0)", CFG).sampler
    with pytest.raises(ConfigError, match="negative = 2 must be left out"):
        _ = make("decoder", ("classifier_free(scale=2.0, negative=2)",)).sampler
    with pytest.raises(ConfigError, match=r"places = \(8,\) asks for self-attention"):
        _ = make("decoder(size=8)", ("perturbed_attention(scale=1.0, places=(8,))",)).sampler
    nowhere = make("decoder(size=8, held_out='validation')")
    with pytest.raises(ConfigError, match="validation"):
        nowhere.sample_condition(np.zeros(1, np.int32))
