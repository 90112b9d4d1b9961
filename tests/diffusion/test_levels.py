import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion.levels import (
    SCALINGS,
    NoiseLevel,
    alpha_sigma,
    expand_like,
    log_alpha_sigma,
    logsnr_of_alpha,
)

LOGSNR = st.floats(-20.0, 20.0)


@pytest.mark.parametrize(
    ("scaling", "clean", "noise"),
    [
        ("vp", (1, 0), (0, 1)),
        ("sub_vp", (1, 0), (0, 1)),
        ("ve", (1, 0), (1, np.inf)),
        ("flow", (1, 0), (0, 1)),
    ],
)
@pytest.mark.parametrize("make", [np.asarray, jnp.asarray])
def test_ends_are_exact(scaling, clean, noise, make):
    assert alpha_sigma(make(np.inf), scaling) == clean
    assert alpha_sigma(make(-np.inf), scaling) == noise


@pytest.mark.parametrize("scaling", SCALINGS)
@given(logsnr=LOGSNR)
def test_round_trip(scaling, logsnr):
    alpha, sigma = alpha_sigma(logsnr, scaling)
    assert 2.0 * (np.log(alpha) - np.log(sigma)) == pytest.approx(logsnr, abs=1e-13)


@pytest.mark.parametrize("scaling", ["vp", "sub_vp", "flow"])
@given(logsnr=LOGSNR)
def test_logsnr_of_alpha_is_the_inverse(scaling, logsnr):
    log_alpha, _ = log_alpha_sigma(logsnr, scaling)
    got = logsnr_of_alpha(np.exp(log_alpha), -np.expm1(log_alpha), scaling)
    assert got == pytest.approx(logsnr, abs=1e-13)
    for end, alpha in ((-np.inf, 0.0), (np.inf, 1.0)):
        assert logsnr_of_alpha(np.float64(alpha), np.float64(1.0 - alpha), scaling) == end


@given(logsnr=LOGSNR)
def test_scalings_normalize(logsnr):
    alpha, sigma = alpha_sigma(logsnr, "vp")
    assert alpha**2 + sigma**2 == pytest.approx(1.0, abs=1e-15)
    alpha, sigma = alpha_sigma(logsnr, "sub_vp")
    assert alpha**2 + sigma == pytest.approx(1.0, abs=1e-15)
    alpha, sigma = alpha_sigma(logsnr, "flow")
    assert alpha + sigma == pytest.approx(1.0, abs=1e-15)
    assert alpha_sigma(logsnr, "ve")[0] == 1.0


@pytest.mark.parametrize("scaling", SCALINGS)
def test_float32_keeps_its_digits_where_a_subtraction_loses_them(scaling):
    """1 - alpha_bar in float32 is off by more than 1e-4 at logsnr 10; sigma^2 here is not."""
    logsnr = np.linspace(-20.0, 20.0, 401)
    exact = alpha_sigma(logsnr, scaling)
    single = alpha_sigma(jnp.asarray(logsnr, jnp.float32), scaling)
    for a, b in zip(exact, single, strict=True):
        assert b.dtype == jnp.float32
        # 1 ulp of logsnr near 20 is 1.9e-6; half of it is the error that a cast brings.
        np.testing.assert_allclose(b, a, rtol=2e-6)
    alpha_bar = np.float32(1.0 / (1.0 + np.exp(-10.0)))
    naive = np.float32(1.0) - alpha_bar
    assert abs(naive / alpha_sigma(10.0, "vp")[1] ** 2 - 1.0) > 1e-4


def test_numpy_stays_numpy_float64_and_jax_stays_jax():
    for given_, kind in ((3, np.float64), (np.float32(3.0), np.float64)):
        assert all(np.asarray(v).dtype == kind for v in alpha_sigma(given_, "vp"))
    assert all(isinstance(v, jax.Array) for v in jax.jit(lambda x: alpha_sigma(x, "ve"))(1.0))


def test_level_shapes_follow_x():
    x = np.zeros((2, 4, 4, 3))
    level = NoiseLevel(*np.arange(8.0).reshape(4, 2)).like(x)
    assert all(field.shape == (2, 1, 1, 1) for field in level)
    assert expand_like(0.5, x) == 0.5
    assert expand_like(jnp.ones(()), x).shape == ()


def test_unknown_scaling_names_the_nearest():
    with pytest.raises(ValueError, match=r"scaling='vq'.*did you mean 'vp'"):
        alpha_sigma(0.0, "vq")
