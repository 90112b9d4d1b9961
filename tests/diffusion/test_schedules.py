import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.schedules import cosine, edm, from_betas, linear, rectified_flow

ALL = [linear(), linear(timesteps=4000), cosine(), cosine(timesteps=50), rectified_flow(), edm()]
DISCRETE = ALL[:4]


def name(schedule):
    return f"{type(schedule).__name__}{schedule.num_timesteps or ''}"


@pytest.mark.parametrize(
    ("schedule", "first", "last"),
    [
        (linear(timesteps=1000), 9.21, -10.12),
        (linear(timesteps=4000), 10.60, -10.07),
        (cosine(timesteps=1000), 10.10, -19.84),
        (cosine(timesteps=4000), 11.53, -22.6),
    ],
)
def test_ends(schedule, first, last):
    ends = schedule.logsnr(np.array([0, schedule.num_timesteps - 1]))
    np.testing.assert_allclose(ends, [first, last], atol=0.01)


def test_ends_as_alpha_bar_and_sigma():
    assert linear().alpha(999) ** 2 == pytest.approx(4.036e-5, rel=1e-4)
    ve = np.exp(-0.5 * linear().logsnr(np.array([0, 999])))
    np.testing.assert_allclose(ve, [0.0100, 157.4], rtol=2e-3)
    ve = np.exp(-0.5 * cosine().logsnr(np.array([0, 999])))
    np.testing.assert_allclose(ve, [0.0064, 2.03e4], rtol=4e-3)


def test_karras_grid():
    """Table of the 18 noise levels of EDM's default sampler."""
    expected = (
        "80 57.586 40.786 28.375 19.352 12.910 8.4009 5.3152 3.2568 1.9233 1.0882 .5853 .2964 "
        ".1395 .0599 .0229 .0075 .002"
    )
    sigma = edm().sigma(np.linspace(1.0, 0.0, 18))
    np.testing.assert_allclose(sigma, np.array(expected.split(), float), rtol=2e-3, atol=6e-5)


def test_linear_is_scaled_by_its_length():
    np.testing.assert_allclose(linear(timesteps=250).betas, np.linspace(4e-4, 0.08, 250))


def test_cosine_is_clipped_only_at_its_end():
    schedule = cosine(timesteps=1000)
    u = (np.arange(1000) + 1) / 1000
    f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    clipped = np.isclose(schedule.betas, 0.999, rtol=1e-12)
    assert clipped.sum() == 1
    assert clipped[-1]
    np.testing.assert_allclose(schedule.alpha(np.arange(999)) ** 2, f[:-1], rtol=1e-9)


@pytest.mark.parametrize("schedule", ALL, ids=name)
def test_logsnr_falls_and_its_inverse_returns(schedule):
    t = np.linspace(*schedule.t_range, 1001)
    logsnr = schedule.logsnr(t)
    assert np.all(np.isfinite(logsnr))
    assert np.all(np.diff(logsnr) < 0)
    np.testing.assert_allclose(schedule.t_of_logsnr(logsnr), t, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", [rectified_flow(), edm()], ids=name)
@given(logsnr=st.floats(-20.0, 20.0))
def test_continuous_time_of_any_logsnr(schedule, logsnr):
    """Also outside [0, 1], where samplers of other ranges lead."""
    assert schedule.logsnr(schedule.t_of_logsnr(logsnr)) == pytest.approx(logsnr, abs=1e-8)


@given(index=st.integers(0, 998), share=st.floats(0.0, 1.0))
def test_discrete_logsnr_is_linear_between_indices(index, share):
    schedule = linear()
    ends = schedule.logsnr(np.array([index, index + 1]))
    assert schedule.logsnr(index + share) == pytest.approx(ends[0] + share * (ends[1] - ends[0]))


@pytest.mark.parametrize("schedule", ALL, ids=name)
def test_clean_data(schedule):
    data = schedule.data
    assert (data.logsnr, data.alpha, data.sigma) == (np.inf, 1.0, 0.0)
    level = schedule.level(data.t)
    assert level.alpha == 1.0
    assert level.sigma < 1e-100
    # Index 0 is the first noisy level, not the data.
    assert data.t == -1.0 or schedule.num_timesteps is None
    low = schedule.t_range[0]
    assert np.isfinite(schedule.logsnr(low))


def test_discrete_times_beyond_the_ends():
    schedule = linear()
    assert schedule.logsnr(-0.5) == np.inf
    assert schedule.logsnr(2000.0) == schedule.logsnr(999)
    assert schedule.t_of_logsnr(30.0) == 0.0
    assert schedule.t_of_logsnr(-30.0) == 999.0


@pytest.mark.parametrize("schedule", ALL, ids=name)
def test_jax_agrees_with_numpy_and_each_answers_in_kind(schedule):
    t = np.linspace(*schedule.t_range, 60)
    exact = schedule.level(t)
    single = jax.jit(schedule.level)(jnp.asarray(t, jnp.float32))
    assert all(np.asarray(v).dtype == np.float64 for v in exact)
    assert all(v.dtype == jnp.float32 for v in single)
    # The times that jax was given are rounded; from there on only float32 arithmetic is lost.
    exact = schedule.level(np.asarray(single.t, np.float64))
    for got, want in zip(single[1:], exact[1:], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("schedule", DISCRETE, ids=name)
def test_an_index_gathers_the_float64_table_cast_once(schedule):
    """Trap: tables built in float32 have sigma_0^2 wrong by 2e-4 and more."""
    t = np.arange(-1, schedule.num_timesteps)
    exact = schedule.level(t)
    single = schedule.level(jnp.asarray(t))
    np.testing.assert_array_equal(single.logsnr, exact.logsnr.astype(np.float32))
    np.testing.assert_allclose(single.sigma, exact.sigma, rtol=2e-6)
    np.testing.assert_allclose(single.alpha, exact.alpha, rtol=2e-6)
    naive = np.float32(1.0) - np.cumprod(1.0 - schedule.betas.astype(np.float32))
    assert abs(naive[0] / exact.sigma[1] ** 2 - 1.0) > 1e-6


def test_rectified_flow_is_a_straight_line():
    t = np.linspace(0.0, 1.0, 11)
    level = rectified_flow().level(t)
    np.testing.assert_allclose(level.sigma, t, atol=1e-15)
    np.testing.assert_allclose(level.alpha, 1.0 - t, atol=1e-15)


def test_network_time_runs_to_1000_and_is_float():
    """Trap: a network built for 0..1000 must see that range whatever T is."""

    def time(schedule, t):
        return schedule.network_time(schedule.level(t))

    assert time(linear(timesteps=4000), 4) == 1.0
    assert time(linear(timesteps=250), jnp.asarray(3)) == 12.0
    assert time(linear(timesteps=250), jnp.asarray(3)).dtype == jnp.float32
    assert time(rectified_flow(), 0.25) == 250.0
    times = time(linear(), jnp.arange(1000))
    assert len(np.unique(times)) == 1000
    assert len(np.unique(times.astype(jnp.bfloat16))) == 507


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: linear(timesteps=10), "betas must lie strictly between 0 and 1.*2"),
        (lambda: edm(sigma_min=3.0, sigma_max=1.0), "sigma_min=3.0, sigma_max=1.0"),
        (lambda: rectified_flow(margin=0.7), "margin=0.7"),
    ],
)
def test_impossible_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@given(betas=st.lists(st.floats(1e-6, 0.999), min_size=2, max_size=30))
def test_any_betas_give_a_schedule(betas):
    schedule = from_betas(np.array(betas))
    logsnr = schedule.logsnr(np.arange(len(betas)))
    assert np.all(np.isfinite(logsnr))
    assert np.all(np.diff(logsnr) < 0)
    alpha_bar = np.cumprod(1.0 - np.array(betas))
    np.testing.assert_allclose(schedule.alpha(np.arange(len(betas))) ** 2, alpha_bar, rtol=1e-9)
