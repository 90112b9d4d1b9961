import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion import PARAMETERIZATIONS
from diffusion.levels import SCALINGS, NoiseLevel, alpha_sigma
from diffusion.parameterization import EDM
from diffusion.schedules import edm, linear, rectified_flow

EACH = pytest.mark.parametrize("kind", PARAMETERIZATIONS)
SCALED = pytest.mark.parametrize("scaling", SCALINGS)
LOGSNR = st.floats(-20.0, 20.0)


def level_at(logsnr, scaling, make=np.asarray):
    logsnr = make(logsnr)
    return NoiseLevel(make(np.zeros(np.shape(logsnr))), logsnr, *alpha_sigma(logsnr, scaling))


def images(seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((2, 3, 4, 4, 2))


@EACH
@SCALED
@given(logsnr=LOGSNR)
def test_target_and_prediction_are_inverse(kind, scaling, logsnr):
    x0, eps = images()
    level = level_at(np.full(3, logsnr), scaling)
    form = PARAMETERIZATIONS[kind]()
    z = level.like(x0).alpha * x0 + level.like(x0).sigma * eps
    got = form.prediction(form.target(x0, eps, level), z, level)
    # One unit in the last place of z, seen from x0 and from eps.
    ratio = np.exp(0.5 * abs(logsnr))
    np.testing.assert_allclose(got[0], x0, atol=1e-14 * ratio)
    np.testing.assert_allclose(got[1], eps, atol=1e-14 * ratio)


@EACH
@SCALED
@given(logsnr=LOGSNR)
def test_any_output_keeps_z(kind, scaling, logsnr):
    raw, z = images(1)
    level = level_at(np.full(3, logsnr), scaling)
    x0, eps = PARAMETERIZATIONS[kind]().prediction(raw, z, level)
    wide = level.like(z)
    scale = 1.0 + abs(wide.alpha * x0) + abs(wide.sigma * eps)
    np.testing.assert_allclose((wide.alpha * x0 + wide.sigma * eps - z) / scale, 0.0, atol=1e-14)


@EACH
@SCALED
@given(logsnr=st.floats(-60.0, 60.0))
def test_log_x0_weight_is_finite_and_is_the_ratio_of_errors(kind, scaling, logsnr):
    form = PARAMETERIZATIONS[kind]()
    weight = form.log_x0_weight(level_at(logsnr, scaling))
    single = form.log_x0_weight(level_at(logsnr, scaling, jnp.asarray))
    assert np.isfinite(weight)
    np.testing.assert_allclose(single, weight, rtol=1e-5, atol=2e-5)
    if abs(logsnr) > 8.0:
        return
    x0, eps = images()
    level = level_at(np.full(3, logsnr), scaling)
    z = level.like(x0).alpha * x0 + level.like(x0).sigma * eps
    raw = form.target(x0, eps, level) + images(2)[0]
    x0_hat, _ = form.prediction(raw, z, level)
    ratio = np.sum((form.target(x0, eps, level) - raw) ** 2) / np.sum((x0 - x0_hat) ** 2)
    assert weight == pytest.approx(np.log(ratio), abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "scaling", "log_weight"),
    [
        ("eps", "vp", lambda t: t),
        ("eps", "ve", lambda t: t),
        ("x0", "flow", lambda t: 0.0 * t),
        ("v", "vp", lambda t: np.log(np.exp(t) + 1.0)),
        # 1 / t^2 of rectified flow, t = sigma = 1 / (1 + e^{logsnr / 2}).
        ("flow", "flow", lambda t: 2.0 * np.log(1.0 + np.exp(0.5 * t))),
        # SNR + 1 / sigma_data^2.
        ("edm", "ve", lambda t: np.log(np.exp(t) + 4.0)),
        ("edm", "vp", lambda t: np.log(np.exp(t) + 4.0)),
    ],
)
def test_known_loss_equivalences(kind, scaling, log_weight):
    logsnr = np.linspace(-20.0, 20.0, 81)
    got = PARAMETERIZATIONS[kind]().log_x0_weight(level_at(logsnr, scaling))
    np.testing.assert_allclose(got, log_weight(logsnr), atol=1e-12)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
@given(log_sigma=st.floats(-7.0, 5.0))
def test_edm_is_its_published_preconditioning(sigma_data, log_sigma):
    """c_skip, c_out, c_in, c_noise of Karras et al. 2022, table 1."""
    sigma, sd = np.exp(log_sigma), sigma_data
    c_skip = sd**2 / (sigma**2 + sd**2)
    c_out = sigma * sd / np.sqrt(sigma**2 + sd**2)
    c_in = 1.0 / np.sqrt(sigma**2 + sd**2)
    raw, x = images()
    level = level_at(np.full(3, -2.0 * log_sigma), "ve")
    form = EDM(sigma_data=sd)
    np.testing.assert_allclose(form.prediction(raw, x, level)[0], c_skip * x + c_out * raw)
    x_in, time = form.network_input(x, level, edm())
    np.testing.assert_allclose(x_in, c_in * x)
    np.testing.assert_allclose(time, np.log(sigma) / 4.0, atol=1e-12)
    # Weight (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 on x0 is weight 1 on F.
    weight = (sigma**2 + sd**2) / (sigma * sd) ** 2
    np.testing.assert_allclose(form.log_x0_weight(level), np.log(weight), atol=1e-10)


def test_edm_on_vp_is_edm_on_ve_of_the_rescaled_image():
    raw, z = images()
    vp, ve = (level_at(np.full(3, 1.3), scaling) for scaling in ("vp", "ve"))
    y = z / vp.like(z).alpha
    form = EDM()
    for a, b in zip(form.prediction(raw, z, vp), form.prediction(raw, y, ve), strict=True):
        np.testing.assert_allclose(a, b)
    np.testing.assert_allclose(
        form.network_input(z, vp, linear())[0], form.network_input(y, ve, edm())[0]
    )


@pytest.mark.parametrize("kind", ["v", "flow", "edm", "x0"])
@pytest.mark.parametrize("scaling", ["vp", "flow"])
def test_pure_noise_is_finite(kind, scaling):
    """Trap: at SNR 0 only eps says nothing of x0."""
    raw, x = images()
    x0, eps = PARAMETERIZATIONS[kind]().prediction(raw, x, level_at(np.full(3, -np.inf), scaling))
    assert np.all(np.isfinite(x0))
    np.testing.assert_allclose(eps, x)


def test_edm_output_of_unit_variance_data_has_unit_variance():
    """The point of the preconditioning: input and target of variance 1 at every level."""
    rng = np.random.default_rng(0)
    x0, eps = 0.5 * rng.standard_normal((1, 200_000)), rng.standard_normal((1, 200_000))
    for logsnr in (-12.0, 0.0, 12.0):
        level = level_at(np.full(1, logsnr), "vp")
        z = level.like(x0).alpha * x0 + level.like(x0).sigma * eps
        assert EDM().network_input(z, level, linear())[0].std() == pytest.approx(1.0, rel=0.01)
        assert EDM().target(x0, eps, level).std() == pytest.approx(1.0, rel=0.01)


def test_time_told_to_the_network():
    x = np.zeros((1, 2))
    for kind in ("eps", "x0", "v", "flow"):
        for schedule, t, time in ((linear(timesteps=500), 10, 20.0), (rectified_flow(), 0.3, 300)):
            x_in, got = PARAMETERIZATIONS[kind]().network_input(x, schedule.level(t), schedule)
            assert x_in is x
            assert got == pytest.approx(time)
