"""Tasks whole, with a network that is right for Gaussian data: their gradients lead back to it.

The network reads level and x from what EDM's preconditioning tells it, so levels, scalings and
signs of the whole task are in the test. `w` = 1 is the solution.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusion
from configs import digits_fewstep
from training import tasks
from training.config import freeze, validate

M, S, D = 0.3, 0.6, 0.75
BATCH = 8192
KEY = jax.random.key(3)
DATA = {"latent": M + S * np.random.default_rng(0).normal(size=(BATCH, 2, 2, 1)).astype(np.float32)}


def make_task(call):
    config = digits_fewstep.get_config()
    config.data.update(field="latent", image_size=2)
    config.model.update(
        channels=8, channel_mult=(1,), attention_resolutions=(), norm_groups=4, num_classes=0
    )
    config.model.null_class = False
    config.diffusion.label_dropout = 0.0
    config.task = call
    validate(config)
    return tasks.make_task(freeze(config))


def seen(x_in, time):
    """(x, t, sigma / alpha) of EDM's input and c_noise on the straight path."""
    sigma = jnp.exp(4.0 * time)[:, None, None, None]
    t = sigma / (1.0 + sigma)
    return x_in * jnp.sqrt(t**2 + ((1.0 - t) * D) ** 2), t, sigma


def raw_of(task, x0, eps, time):
    level = task.schedule.level_of_logsnr(-8.0 * time)
    return task.parameterization.target(x0, eps, level)


def spread(t):
    return jnp.sqrt((1.0 - t) ** 2 * S**2 + t**2)


def end_of_path(task, params, x_in, time, condition, dropout_key=None):
    """The consistency function; for `w` other than 1 its values change along a path."""
    x, t, sigma = seen(x_in, time)
    y = x / (1.0 - t)
    x0 = M + (y - M) * (S / jnp.sqrt(S**2 + sigma**2)) ** params["w"]
    return raw_of(task, x0, (y - x0) / sigma, time)


def mean_velocity(task, params, x_in, time, condition, dropout_key=None):
    """The flow map of a step, whose limit is taken at small ones."""
    x, t, _ = seen(x_in, time)
    h = condition["step"][:, None, None, None]
    still = h < 1e-3 * t
    deviation = x - (1.0 - t) * M
    end = jnp.where(still, 0.5, h)
    leap = (x - (1.0 - t + end) * M - deviation * spread(t - end) / spread(t)) / end
    slope = deviation / spread(t) ** 2
    velocity = t * slope - (M + (1.0 - t) * S**2 * slope)
    u = params["w"] * jnp.where(still, velocity, leap)
    return raw_of(task, x - t * u, x + (1.0 - t) * u, time)


def teacher(x, level, condition=None):
    sigma = jnp.exp(-0.5 * level.logsnr).reshape(-1, 1, 1, 1)
    y = x / level.like(x).alpha
    x0 = M + S**2 / (S**2 + sigma**2) * (y - M)
    return diffusion.Prediction(x0, (y - x0) / sigma)


@pytest.mark.parametrize(
    ("call", "network", "taught"),
    [
        # Far from the pseudo-Huber's corner, and where the noise of a batch is smaller.
        (
            "consistency(teacher='t', end=160, double_every=0, huber=100.0, mean=0.0, std=0.5)",
            end_of_path,
            True,
        ),
        (
            "consistency(end=1280, double_every=0, huber=100.0, mean=0.0, std=0.5)",
            end_of_path,
            False,
        ),
        ("scm(teacher='t', warmup=0)", end_of_path, True),
        # As good as without normalization, which bends the mean over data and noise.
        ("scm(warmup=0, c=1000.0)", end_of_path, False),
        ("meanflow(power=0.0)", mean_velocity, False),
        ("shortcut(steps=8, share=0.5, clip=0.0)", mean_velocity, False),
    ],
)
def test_the_gradient_leads_to_the_solution(call, network, taught):
    task = make_task(call)
    if taught:
        task.teacher = lambda state: teacher
    inner = task.network._replace(apply=lambda *a, **k: network(task, *a, **k))
    if "shortcut" in call:
        from training.tasks.shortcut import _told_doublings

        # It is told doublings and has to know the step.
        def from_doublings(params, x, time, condition, dropout_key=None):
            h = task.longest * 2.0 ** -condition["step"]
            h = jnp.where(condition["step"] >= task.doublings, 0.0, h)
            return network(task, params, x, time, {"step": h})

        inner = inner._replace(apply=from_doublings)
        inner = inner._replace(apply=_told_doublings(inner, task))
    task.network = inner
    state = task.init_state() | {"average": {"w": jnp.float32(1.0)}}

    @jax.jit
    def gradient(w):
        return jax.grad(lambda w: task.loss({"w": w}, state, DATA, KEY)[0])(w)

    at, above, below = (float(gradient(jnp.float32(w))) for w in (1.0, 1.2, 0.8))
    assert above > 0 > below
    assert abs(at) < 0.1 * min(above, -below)


def test_progressive_distillation_of_a_point_has_nothing_to_learn():
    """All its paths are straight: the teacher is right for any number of steps."""
    task = make_task("progressive(teacher='t', steps=2)")

    def point(x, level, condition=None):
        x0 = M + 0.0 * x
        level = level.like(x)
        return diffusion.Prediction(x0, (x - level.alpha * x0) / level.sigma)

    def apply(params, x_in, time, condition, dropout_key=None):
        x, t, _ = seen(x_in, time)
        x0 = params["w"] * M + 0.0 * x
        return raw_of(task, x0, (x - (1.0 - t) * x0) / t, time)

    task.teacher = lambda state: point
    task.network = task.network._replace(apply=apply)

    def loss(w):
        return task.loss({"w": jnp.float32(w)}, {}, DATA, KEY)[0]

    assert loss(1.0) < 1e-9
    assert loss(1.1) > 1e-4
