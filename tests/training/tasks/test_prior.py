"""The diffusion prior's task: its space, its loss, its samples; and exact laws of samples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffusion
from input_pipeline.sources.gaussian_pairs import gaussian_pairs
from models.caption import NO_TEXT
from pipelines import analytic
from training import command_line, tasks
from training.components import ConfigError, build
from training.tasks.prior import best

SCHEDULE = "cosine(timesteps=1000)"


def make(task="prior(candidates=1)", **fields):
    config = command_line.read("configs/prior_paper.py:smoke")
    config.task = task
    for name, value in fields.items():
        section, field = name.split("__")
        config[section][field] = value
    return tasks.make_task(config)


TASK = make()
PAIRS = TASK.embeddings.read(16)
PARAMS = TASK.init(jax.random.key(0))
KEY = jax.random.key(1)


def rows(pairs, which):
    return {name: value[which] for name, value in pairs.items()}


def test_the_space_of_the_model():
    """Vectors of length 1 times the root of the dimension have coordinates of mean square 1."""
    x = TASK.to_model(jnp.asarray(PAIRS["image_embedding"]))
    np.testing.assert_allclose(np.square(x).mean(1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(TASK.from_model(x), axis=1), 1.0, rtol=1e-5)
    raw = make("prior(scale=17.2, normalize=False)")
    x = raw.to_model(jnp.asarray(PAIRS["image_embedding"]))
    np.testing.assert_allclose(x, 17.2 * PAIRS["image_embedding"], rtol=1e-6)
    np.testing.assert_allclose(raw.from_model(x), PAIRS["image_embedding"], rtol=1e-5)


def test_the_loss_is_the_squared_error_of_x0():
    """A network that says 0 has the mean square of the scaled embeddings as its loss: scale^2/D."""
    task = make("prior(scale=3.0)")
    silent = PARAMS | {"out": jax.tree.map(jnp.zeros_like, PARAMS["out"])}
    loss, (metrics, _) = jax.jit(task.loss)(silent, task.init_state(), PAIRS, KEY)
    assert loss == pytest.approx(9.0 / task.dim, rel=1e-5)
    assert metrics["mse"] == pytest.approx(float(loss), rel=1e-6)


def test_captions_are_withheld_at_the_rate_and_embeddings_never():
    told = {NO_TEXT: jnp.zeros(20_000, bool), "text_embedding": jnp.ones((20_000, 1))}
    dropped = make("prior(caption_dropout=0.1)").dropped(told, KEY)
    assert np.mean(dropped[NO_TEXT]) == pytest.approx(0.1, abs=0.01)
    np.testing.assert_array_equal(dropped["text_embedding"], told["text_embedding"])
    assert not TASK.condition(PAIRS)[NO_TEXT].any()
    # With every caption withheld the loss knows the embedding's noise still, the caption no more.
    loss = jax.jit(make("prior(caption_dropout=1.0)").loss)
    one = loss(PARAMS, {}, PAIRS, KEY)[0]
    assert one == loss(PARAMS, {}, PAIRS | {"text_embedding": PAIRS["image_embedding"]}, KEY)[0]
    assert one != loss(PARAMS, {}, PAIRS | {"image_embedding": PAIRS["text_embedding"]}, KEY)[0]


def test_a_sample_depends_on_its_own_caption_and_number():
    whole = TASK.sample(PARAMS, PAIRS, KEY)
    part = TASK.sample(PARAMS, rows(PAIRS, [7, 2]), KEY, np.array([7, 2], np.int32))
    np.testing.assert_allclose(part, whole[np.array([7, 2])], atol=2e-5)
    other = TASK.sample(PARAMS, rows(PAIRS, [7, 2]), KEY, np.array([8, 2], np.int32))
    assert np.abs(other - part)[0].max() > 1e-2
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1.0, rtol=1e-5)


def test_the_better_of_two_candidates():
    two = make("prior(candidates=2)").sample(PARAMS, PAIRS, KEY)
    numbers = np.arange(16, dtype=np.int32)
    each = [np.asarray(TASK.sample(PARAMS, PAIRS, KEY, 2 * numbers + c)) for c in (0, 1)]
    text = np.asarray(TASK.direction(jnp.asarray(PAIRS["text_embedding"])))
    dots = np.stack([(drawn * text).sum(1) for drawn in each])
    expected = np.where(dots.argmax(0)[:, None] == 0, *each)
    assert set(dots.argmax(0)) == {0, 1}
    np.testing.assert_allclose(two, expected, atol=2e-5)
    drawn = jnp.arange(12.0).reshape(2, 3, 2)
    text = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
    np.testing.assert_array_equal(best(drawn, text), [[4.0, 5.0], [6.0, 7.0]])


def test_guidance_moves_away_from_no_caption():
    told = TASK.condition(PAIRS)
    null = told | {NO_TEXT: jnp.ones(16, bool)}
    plain = TASK.denoiser(PARAMS)
    level = TASK.schedule.level(jnp.float32(600.0))
    x = jax.random.normal(KEY, (16, TASK.dim))
    for name in ("classifier_free(scale=3.0)", "adaptive_projected(scale=3.0)"):
        item = build(diffusion.GUIDANCES, name, "guidance")
        guided = diffusion.guide(plain, [item], TASK.parameterization, {NO_TEXT: np.bool_(True)})
        x0 = guided(x, level, told).x0
        assert x0.shape == x.shape
        if name.startswith("classifier_free"):
            own, without = plain(x, level, told).x0, plain(x, level, null).x0
            np.testing.assert_allclose(x0, without + 3.0 * (own - without), atol=1e-4)
            assert np.abs(own - without).max() > 1e-3
    guided = make(sample__guidance=("classifier_free(scale=4.0)",)).sample(PARAMS, PAIRS, KEY)
    assert np.abs(guided - TASK.sample(PARAMS, PAIRS, KEY)).max() > 1e-2


@pytest.mark.parametrize(
    ("task", "fields", "message"),
    [
        ("prior(candidates=0)", {}, "candidates must be 1 or more"),
        ("prior", {"model__null_text": False}, "caption_dropout=0.1 needs config.model.null_text"),
        ("prior", {"sample__clip": "static"}, "embeddings are beyond it, take 'none'"),
        ("prior", {"diffusion__loss": "vlb"}, "must be 'simple' with task 'prior'"),
        ("prior", {"diffusion__schedule": "learned_nn()"}, "config.diffusion.schedule"),
        ("regression_prior", {}, "needs 'linear_prior' or 'mlp_prior'"),
        ("autoregressive_prior", {}, "needs 'autoregressive_prior'"),
    ],
)
def test_mistakes_are_named(task, fields, message):
    with pytest.raises(ConfigError, match=message):
        make(task, **fields)


def test_guidance_without_a_null_caption_is_refused():
    task = make(
        "prior(caption_dropout=0.0)",
        model__null_text=False,
        sample__guidance=("classifier_free(scale=4.0)",),
    )
    params = task.init(KEY)
    with pytest.raises(ConfigError, match="needs a network that knows 'no caption'"):
        task.sample(params, PAIRS, KEY)


def test_preview_is_a_matrix_of_cosines():
    picture = TASK.preview(PARAMS, KEY)
    assert picture.shape == (1, 64, 64, 1)
    predicted = np.asarray(TASK.sample(PARAMS, rows(PAIRS, slice(8)), KEY))
    true = PAIRS["image_embedding"][:8]
    cosines = predicted @ (true / np.linalg.norm(true, axis=1, keepdims=True)).T
    np.testing.assert_allclose(picture[0, ::8, ::8, 0], cosines, atol=2e-5)


# The law of an embedding that is linear in the text, with Gaussian noise.
SOURCE = gaussian_pairs(dim=4, noise=0.6)
TEXT = np.array([1.0, -0.5, 2.0, 0.0], np.float32)


def posterior_mean(schedule, noise, x, time, mean):
    """E[x0 | x, text] where x0 is N(mean, noise^2)."""
    level = schedule.level(time)
    alpha, sigma = (field[:, None] for field in (level.alpha, level.sigma))
    gain = noise**2 * alpha / (alpha**2 * noise**2 + sigma**2)
    return mean + gain * (x - alpha * mean)


@pytest.mark.parametrize(
    ("solver", "steps"),
    [
        ("ddpm(variance='fixed_small')", 200),
        ("ddpm(variance='analytic')", 32),
        ("ddim(eta=0.0)", 200),
        ("dpmpp_2m", 40),
    ],
)
def test_the_exact_denoiser_gives_the_conditional_law(solver, steps, tmp_path):
    """Mean and covariance of 20,000 embeddings for one caption, by the samplers of images."""
    schedule = build(diffusion.SCHEDULES, SCHEDULE, "schedule")
    x0 = build(diffusion.PARAMETERIZATIONS, "x0", "parameterization")
    mean = TEXT @ SOURCE.map.astype(np.float32)

    def network(x, time, condition):
        centre = condition["text_embedding"] @ SOURCE.map.astype(np.float32)
        return posterior_mean(schedule, SOURCE.noise, x, time, centre)

    denoiser = diffusion.denoiser(network, schedule, x0)
    grid = build(diffusion.GRIDS, "respaced", "grid")(schedule, steps, "zero")
    if "analytic" in solver:
        finite = np.isfinite(grid.logsnr)
        levels = diffusion.NoiseLevel(*(field[finite] for field in grid))
        pairs = [SOURCE[k] for k in range(2048)]
        batch = tuple(jnp.stack([p[f"{k}_embedding"] for p in pairs]) for k in ("image", "text"))
        batches = [(batch[0], {"text_embedding": batch[1]})]
        found = diffusion.solvers.analytic.estimate(
            lambda _: denoiser, None, batches, levels, jax.random.key(2)
        )
        found.save(tmp_path / "analytic.json")
        solver = f"ddpm(variance='analytic', estimates={str(tmp_path / 'analytic.json')!r})"
    rule = build(diffusion.SOLVERS, solver, "solver")
    plan = jax.tree.map(np.float32, rule.plan(grid, schedule))

    @jax.jit
    def draw(plan, keys):
        told = {"text_embedding": jnp.broadcast_to(TEXT, (len(keys), 4))}
        return diffusion.sample(denoiser, rule, plan, keys, (4,), told)

    drawn = np.asarray(draw(plan, diffusion.sample_keys(KEY, jnp.arange(20_000))))
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.03)
    # fixed_small knows nothing of the spread of x0 given x: at few steps it lacks variance.
    np.testing.assert_allclose(np.cov(drawn.T), 0.36 * np.eye(4), atol=0.03)


def test_estimates_serve_the_task(tmp_path):
    """Of a network that says 0 the noise is x / sigma, of mean square 1 + SNR for unit data."""
    silent = PARAMS | {"out": jax.tree.map(jnp.zeros_like, PARAMS["out"])}
    found = analytic.estimates(TASK, silent, count=256)
    assert len(found.logsnr) == TASK.config.sample.steps
    assert found.data_square == pytest.approx(1.0, rel=1e-5)
    np.testing.assert_allclose(found.eps_square, 1 + np.exp(found.logsnr), rtol=0.15)
    # The task's sampler reads the file; where something is left unknown, it adds noise for it.
    unsure = found._replace(eps_square=np.full_like(found.eps_square, 0.5))
    unsure.save(tmp_path / "analytic.json")
    solver = f"ddpm(variance='analytic', estimates={str(tmp_path / 'analytic.json')!r})"
    drawn = make(sample__solver=solver).sample(PARAMS, PAIRS, KEY)
    assert np.abs(drawn - TASK.sample(PARAMS, PAIRS, KEY)).max() > 1e-3


def trained(task, steps, rate, batch_size=256):
    """Parameters after Adam with a cosine decay, on the first 16384 pairs."""
    pairs = task.embeddings.read(16_384)
    pairs = jax.tree.map(jnp.asarray, pairs)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    @functools.partial(jax.jit, donate_argnums=0)
    def run(params):
        def step(carry, k):
            params, state = carry
            key = jax.random.fold_in(jax.random.key(5), k)
            chosen = jax.random.randint(key, (batch_size,), 0, 16_384)
            batch = jax.tree.map(lambda value: value[chosen], pairs)
            slope = jax.grad(lambda p: task.loss(p, task.init_state(), batch, key)[0])(params)
            updates, state = optimizer.update(slope, state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))[0][0]

    return run(task.init(jax.random.key(4)))


@pytest.mark.slow
def test_a_trained_prior_approaches_the_posterior():
    source = "gaussian_pairs(dim=4, noise=0.6, context_length=4)"
    fields = {
        "data__source": source,
        "model__embedding_dim": 4,
        "model__text_dim": 4,
        "sample__steps": 64,
    }
    task = make("prior(scale=1.0, normalize=False, candidates=1)", **fields)
    params = trained(task, 3000, 3e-3)
    held = task.embeddings.read(512, "test")
    mean = held["text_embedding"] @ gaussian_pairs(dim=4).map.astype(np.float32)

    told, x = task.condition(held), jax.random.normal(KEY, (512, 4))
    for t in (999, 500):
        level = task.schedule.level(jnp.full(512, float(t)))
        noisy = level.alpha[:, None] * held["image_embedding"] + level.sigma[:, None] * x
        x0 = task.denoiser(params)(noisy, level, told).x0
        exact = posterior_mean(task.schedule, 0.6, noisy, jnp.full(512, float(t)), mean)
        # Without its caption the best guess is off by the caption's own variance, about 1.1.
        assert np.square(x0 - exact).mean() < 0.03

    text = np.repeat(held["text_embedding"][:4], 500, 0)
    names = ("text_features", "text_mask")
    repeated = {name: np.repeat(held[name][:4], 500, 0) for name in names}
    drawn = np.asarray(task.sample(params, repeated | {"text_embedding": text}, KEY))
    drawn = drawn.reshape(4, 500, 4)
    assert np.abs(drawn.mean(1) - mean[:4]).max() < 0.3
    spread = np.mean([np.cov(d.T) for d in drawn], axis=0)
    np.testing.assert_allclose(spread, 0.36 * np.eye(4), atol=0.12)
