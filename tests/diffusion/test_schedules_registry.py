"""What holds for every schedule of the registry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion import SCHEDULES
from diffusion.schedules import zero_terminal_snr

PLAIN = {
    name: make() for name, make in SCHEDULES.items() if name not in ("table", "zero_terminal_snr")
}
VARIANTS = {
    "linear 4000": SCHEDULES["linear"](timesteps=4000),
    "cosine 50": SCHEDULES["cosine"](timesteps=50),
    "shifted_cosine 512": SCHEDULES["shifted_cosine"](image_size=512),
    "vp of one beta": SCHEDULES["vp"](beta_min=5.0, beta_max=5.0),
    "rectified_flow 3": SCHEDULES["rectified_flow"](shift=3.0),
    "vdm_network fixed ends": SCHEDULES["vdm_network"](learned_ends=False),
}
ZERO = {
    f"zero {name}": zero_terminal_snr(schedule)
    for name, schedule in PLAIN.items()
    if schedule.scaling != "ve"
}
ALL = PLAIN | VARIANTS | ZERO
EACH = pytest.mark.parametrize("name", ALL)


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        # By others' code.
        ("linear", 9.21, -10.12),
        ("linear 4000", 10.60, -10.07),
        ("scaled_linear", 7.07, -5.36),
        ("cosine", 10.10, -19.84),
        ("laplace", 3.13, -6.91),
        # log(0.99 / 0.01); log of (1 - s) / s, s = sqrt(0.9991).
        ("sqrt", 4.595, -7.706),
        # log of (S(3) - S(-2.994)) / (S(-2.994) - S(-3)), S the sigmoid; the clip.
        ("sigmoid", 8.110, -20.723),
        # -log expm1(t^2 19.9 / 2 + 0.1 t) at 1e-5 and 1.
        ("vp", 13.815, -10.050),
        # The same twice less log alpha^2; at 1 sigma is 1 - 4.3e-5.
        ("sub_vp", 27.629, -10.050),
        ("ve", 2 * np.log(50), -2 * np.log(100)),
        ("edm", 2 * np.log(500), -2 * np.log(80)),
        ("shifted_cosine", 15.0, -15.0),
        ("shifted_cosine 512", 15.0, -15.0),
        ("interpolated_cosine", 15.0, -15.0),
        # 2 log((1 - 1e-5) / 1e-5), less 2 log 3.
        ("rectified_flow", 23.026, -23.026),
        ("rectified_flow 3", 20.829, -25.223),
        ("vdm", 13.3, -5.0),
        ("vdm_scalar", 13.3, -5.0),
        ("vdm_network fixed ends", 13.3, -5.0),
    ],
)
def test_ends(name, first, last):
    schedule = ALL[name]
    ends = [schedule.logsnr(t) for t in schedule.t_range]
    np.testing.assert_allclose(ends, [first, last], atol=0.006)


def test_every_plain_schedule_has_its_ends_tested():
    """But the network's, whose bend is drawn at random: it stays within its bound of the line."""
    marked = {case[0] for case in test_ends.pytestmark[0].args[1]}
    assert PLAIN.keys() - marked == {"vdm_network"}
    ends = SCHEDULES["vdm_network"]().logsnr(np.array([0.0, 1.0]))
    np.testing.assert_allclose(ends, [13.3, -5.0], atol=1e-3)


@EACH
def test_logsnr_falls_and_its_inverse_returns(name):
    schedule = ALL[name]
    t = np.linspace(*schedule.t_range, 1001)
    logsnr = schedule.logsnr(t)
    finite = logsnr if name not in ZERO else logsnr[:-1]
    assert np.all(np.isfinite(finite))
    assert np.all(np.diff(logsnr) < 0)
    if name in ZERO:
        assert logsnr[-1] == -np.inf
    np.testing.assert_allclose(schedule.t_of_logsnr(logsnr), t, rtol=1e-9, atol=1e-9)


@EACH
@given(share=st.floats(0.0, 1.0))
def test_levels_are_those_of_the_scaling(name, share):
    schedule = ALL[name]
    low, high = schedule.t_range
    level = schedule.level(low + share * (high - low))
    again = schedule.level_of_logsnr(level.logsnr)
    for got, want in zip(again[1:], level[1:], strict=True):
        assert got == pytest.approx(want)
    alpha, sigma = level.alpha, level.sigma
    total = {
        "vp": alpha**2 + sigma**2,
        "sub_vp": alpha**2 + sigma,
        "ve": alpha,
        "flow": alpha + sigma,
    }
    assert total[schedule.scaling] == pytest.approx(1.0, abs=1e-14)
    if alpha > 0:
        assert level.logsnr == pytest.approx(2.0 * (np.log(alpha) - np.log(sigma)), abs=1e-9)


@EACH
def test_clean_data(name):
    schedule = ALL[name]
    data = schedule.data
    assert (data.logsnr, data.alpha, data.sigma) == (np.inf, 1.0, 0.0)
    level = schedule.level(data.t)
    assert level.alpha == 1.0
    assert level.sigma < 1e-100


@EACH
def test_jax_agrees_with_numpy_and_each_answers_in_kind(name):
    schedule = ALL[name]
    t = np.linspace(*schedule.t_range, 61)
    exact = schedule.level(t)
    single = jax.jit(schedule.level)(jnp.asarray(t, jnp.float32))
    assert all(np.asarray(v).dtype == np.float64 for v in exact)
    assert all(v.dtype == jnp.float32 for v in single)
    # The times that jax was given are rounded; from there on only float32 arithmetic is lost.
    exact = schedule.level(np.asarray(single.t, np.float64))
    np.testing.assert_allclose(single.alpha, exact.alpha, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(single.sigma, exact.sigma, rtol=1e-5)
    # A difference of alphas is what zero terminal SNR takes: near its end alpha is small, and so
    # are its digits.
    kept = exact.logsnr > (-8.0 if name in ZERO else -np.inf)
    np.testing.assert_allclose(single.logsnr[kept], exact.logsnr[kept], rtol=1e-5, atol=1e-4)
    back = jax.jit(schedule.t_of_logsnr)(single.logsnr[kept])
    scale = schedule.t_range[1]
    # At the ends a step of float32 in logsnr is a larger one in t.
    steepest = scale / np.min(abs(np.diff(schedule.logsnr(t)[:-1]))) / 60
    np.testing.assert_allclose(back, single.t[kept], atol=1e-5 * max(steepest, scale))


@EACH
def test_the_network_is_told_a_finite_number_that_rises_with_noise(name):
    schedule = ALL[name]
    level = schedule.level(np.linspace(*schedule.t_range, 101))
    time = schedule.network_time(level)
    assert np.all(np.isfinite(time))
    assert np.all(np.diff(time) > 0)
    if schedule.scaling != "ve":
        assert -1e-2 <= time[0] < time[-1] <= 1000.01
