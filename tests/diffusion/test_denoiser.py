import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import PARAMETERIZATIONS, Prediction, clip, denoiser
from diffusion.clipping import dynamic, none, static
from diffusion.schedules import edm, linear, rectified_flow

X = np.random.default_rng(0).standard_normal((3, 4, 4, 2)).astype(np.float32)


def constant_denoiser(x0):
    """Predicts x0 and the noise that goes with it."""

    def denoise(x, level, condition=None):
        wide = level.like(x)
        return Prediction(x0, (x - wide.alpha * x0) / wide.sigma, 7.0 * x0)

    return denoise


@pytest.mark.parametrize("t", [500, np.array([3, 500, 999])])
def test_joins_network_and_parameterization(t):
    seen = {}

    def network(x_in, time, condition):
        seen.update(time=time, condition=condition)
        return (0.5 * x_in).astype(jnp.bfloat16)

    schedule, condition = linear(timesteps=2000), {"label": jnp.arange(3)}
    level = schedule.level(t)
    got = denoiser(network, schedule, PARAMETERIZATIONS["v"]())(jnp.asarray(X), level, condition)
    raw = np.asarray((0.5 * jnp.asarray(X)).astype(jnp.bfloat16), np.float64)
    x0, eps = PARAMETERIZATIONS["v"]().prediction(raw, X.astype(np.float64), level)
    np.testing.assert_allclose(got.x0, x0, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.eps, eps, rtol=1e-5, atol=1e-6)
    assert got.x0.dtype == jnp.float32
    assert got.variance_fraction is None
    np.testing.assert_allclose(seen["time"], np.broadcast_to(0.5 * np.asarray(t), 3))
    assert seen["condition"] is condition


def test_learned_variance_takes_the_second_half_of_the_channels():
    network = denoiser(
        lambda x, time, condition: jnp.concatenate([x, 2.0 * x], -1),
        linear(),
        PARAMETERIZATIONS["x0"](),
        learned_variance=True,
    )
    got = network(jnp.asarray(X), linear().level(10))
    np.testing.assert_allclose(got.x0, X, rtol=1e-6)
    np.testing.assert_array_equal(got.variance_fraction, 2.0 * X)


@pytest.mark.parametrize("learned", [True, False])
def test_a_network_of_other_channels_is_refused(learned):
    network = denoiser(
        lambda x, time, condition: x if learned else jnp.concatenate([x, x], -1),
        linear(),
        PARAMETERIZATIONS["eps"](),
        learned_variance=learned,
    )
    with pytest.raises(ValueError, match=r"wanted.*channels as the image's 2"):
        network(jnp.asarray(X), linear().level(10))


@pytest.mark.parametrize("schedule", [linear(), rectified_flow(), edm()])
def test_clip_rederives_noise_from_the_clipped_image(schedule):
    level = schedule.level(0.3 * schedule.t_range[1])
    x, x0 = X.astype(np.float64), 3.0 * X.astype(np.float64)
    plain = constant_denoiser(x0)(x, level)
    rederived = clip(constant_denoiser(x0), static(), "rederive")(x, level)
    np.testing.assert_array_equal(rederived.x0, np.clip(x0, -1.0, 1.0))
    expected = (x - level.alpha * rederived.x0) / level.sigma
    np.testing.assert_allclose(rederived.eps, expected, rtol=1e-9, atol=1e-12)
    inside = abs(x0) <= 1.0
    np.testing.assert_array_equal(rederived.eps[inside], plain.eps[inside])
    raw = clip(constant_denoiser(x0), static(), "raw")(x, level)
    np.testing.assert_array_equal(raw.x0, rederived.x0)
    np.testing.assert_array_equal(raw.eps, plain.eps)
    assert raw.variance_fraction is not None


def test_clip_none_is_the_denoiser_itself():
    denoise = constant_denoiser(X)
    assert clip(denoise, none()) is denoise


@pytest.mark.parametrize("size", [0.4, 3.0])
def test_dynamic_divides_by_the_percentile_of_each_sample(size):
    """Imagen: s is the percentile of |x0|, and at least 1; two samples do not meet."""
    x0 = np.stack([size * X[0], 5.0 * X[1]]).astype(np.float64)
    got = dynamic(percentile=0.9)(x0)
    for one, before in zip(got, x0, strict=True):
        s = max(1.0, np.quantile(abs(before), 0.9))
        np.testing.assert_allclose(one, np.clip(before, -s, s) / s)
    assert (np.max(abs(got[0])) < 1.0) == (size < 1.0)
    np.testing.assert_array_equal(dynamic(percentile=0.9)(x0[1:])[0], got[1])
    single = dynamic(percentile=0.9)(jnp.asarray(x0, jnp.float32))
    np.testing.assert_allclose(single, got, rtol=1e-6, atol=1e-6)
    # Trap: what diffusers does unless sample_max_value is set.
    np.testing.assert_array_equal(dynamic(maximum=1.0)(x0), static()(x0))


def test_noise_after_a_dynamic_clip_goes_with_the_image():
    level, x = linear().level(700), X.astype(np.float64)
    got = clip(constant_denoiser(4.0 * x), dynamic())(x, level)
    np.testing.assert_allclose(level.alpha * got.x0 + level.sigma * got.eps, x, rtol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: clip(constant_denoiser(X), none(), "rederived"), "'rederived'.*'rederive'"),
        (lambda: dynamic(percentile=99.5), "percentile=99.5"),
        (lambda: dynamic(maximum=0.5), "maximum=0.5"),
    ],
)
def test_impossible_rules(make, message):
    with pytest.raises(ValueError, match=message):
        make()
