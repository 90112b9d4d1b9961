"""Shifts of time, what networks are told, and schedules that are learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.schedules import (
    interpolated_cosine,
    rectified_flow,
    shifted_cosine,
    sqrt,
    vdm,
    vdm_network,
    vdm_scalar,
    ve,
    vp,
)


@given(t=st.floats(1e-5, 1 - 1e-5), shift=st.floats(0.2, 6.0))
def test_the_shift_of_a_straight_path(t, shift):
    """Stable Diffusion 3, eq. 23; the network is told the shifted time."""
    schedule = rectified_flow(shift=shift)
    level = schedule.level(t)
    shifted = shift * t / (1.0 + (shift - 1.0) * t)
    assert level.sigma == pytest.approx(shifted, rel=1e-9)
    assert level.logsnr == pytest.approx(rectified_flow().logsnr(t) - 2.0 * np.log(shift))
    assert schedule.network_time(level) == pytest.approx(1000.0 * shifted)


def test_a_shift_of_the_cosine_moves_the_middle_and_not_the_ends():
    plain, shifted = shifted_cosine(), shifted_cosine(image_size=256)
    assert plain.logsnr(0.5) == pytest.approx(0.0, abs=1e-12)
    assert shifted.logsnr(0.5) == pytest.approx(-2.0 * np.log(4.0), abs=0.01)
    np.testing.assert_allclose(shifted.logsnr(np.array([0.0, 1.0])), [15.0, -15.0], rtol=1e-9)
    t = np.linspace(0.0, 1.0, 11)
    far = shifted_cosine(image_size=256, noise_size=256).logsnr(t)
    near = shifted_cosine(image_size=256, noise_size=32).logsnr(t)
    np.testing.assert_allclose(interpolated_cosine().logsnr(t), (1 - t) * far + t * near)


def test_times_of_edms_preconditionings():
    """c_noise of Karras et al. 2022, table 1."""
    assert vp().network_time(vp().level(0.25)) == pytest.approx(999 * 0.25)
    assert ve().network_time(ve().level_of_logsnr(-2 * np.log(3.0))) == pytest.approx(np.log(1.5))
    times = vdm().network_time(vdm().level(np.array([0.0, 0.3, 1.0])))
    np.testing.assert_allclose(times, [0.0, 300.0, 1000.0], atol=1e-9)


@pytest.mark.parametrize(
    "make", [vdm_scalar, vdm_network, lambda: vdm_network(learned_ends=False, features=8)]
)
def test_learned_schedules_follow_their_parameters(make):
    schedule = make()
    key, t = jax.random.key(0), np.linspace(0.0, 1.0, 7)
    params = schedule.init(key)
    host = jax.tree.map(np.asarray, params)
    assert schedule.bind({}) is schedule
    # Numpy rounds the last bit by where an array lies.
    np.testing.assert_allclose(schedule.logsnr(t), schedule.bind(host).logsnr(t), rtol=1e-14)
    assert schedule.bind(host).logsnr(t).dtype == np.float64
    assert jax.jit(lambda: schedule.logsnr(jnp.asarray(t, jnp.float32)))().dtype == jnp.float32

    def at(params, t):
        return schedule.bind(params).logsnr(t)

    # Away from the initial values, where the network is all but a line.
    random = np.random.default_rng(0)
    moved = {k: np.float64(v) + random.normal(0.0, 2.0, np.shape(v)) for k, v in host.items()}
    assert np.all(np.diff(at(moved, t)) < 0)
    np.testing.assert_allclose(schedule.bind(moved).t_of_logsnr(at(moved, t)), t, atol=1e-12)
    single = jax.tree.map(jnp.float32, moved)
    slopes = jax.jit(jax.grad(at))(single, jnp.float32(0.3))
    for name, slope in slopes.items():
        step = 1e-4 * np.ones_like(moved[name])
        up, down = (at(moved | {name: moved[name] + s}, 0.3) for s in (step, -step))
        assert np.sum(slope) == pytest.approx((up - down) / 2e-4, rel=1e-2, abs=1e-4), name
    back = jax.jit(lambda p, x: schedule.bind(p).t_of_logsnr(x))(single, at(single, t))
    np.testing.assert_allclose(back, t, atol=1e-5)


def test_pinned_ends_stay_whatever_the_parameters():
    schedule = vdm_network(gamma_min=-9.0, gamma_max=6.0, features=8, learned_ends=False)
    random = np.random.default_rng(0)
    params = {
        k: random.normal(size=np.shape(v)) for k, v in schedule.init(jax.random.key(0)).items()
    }
    bound = schedule.bind(params)
    np.testing.assert_allclose(bound.logsnr(np.array([0.0, 1.0])), [9.0, -6.0])
    assert abs(bound.logsnr(0.5) - 1.5) > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vp(beta_min=3.0, beta_max=1.0), "vp: beta_min=3.0, beta_max=1.0"),
        (lambda: vp(t_min=0.0), "vp: t_min=0.0"),
        (lambda: ve(sigma_min=3.0, sigma_max=1.0), "ve: sigma_min=3.0"),
        (lambda: vdm(gamma_min=1.0, gamma_max=0.0), "vdm: gamma_min=1.0"),
        (lambda: vdm_network(features=0), "vdm_network: features=0"),
        (lambda: rectified_flow(shift=0.0), "rectified_flow: shift=0.0"),
        (lambda: shifted_cosine(noise_size=0), "image_size=64, noise_size=0"),
        (lambda: shifted_cosine(logsnr_min=3.0, logsnr_max=1.0), "logsnr_min=3.0"),
        (
            lambda: interpolated_cosine(noise_size_start=8, noise_size_end=512),
            "take noise sizes closer",
        ),
        (lambda: sqrt(offset=0.5), r"sqrt: offset=0.5 must lie in \(0, 1 / timesteps"),
    ],
)
def test_impossible_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
