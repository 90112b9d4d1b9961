import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import PARAMETERIZATIONS, TIME_SAMPLERS, Objective
from diffusion.schedules import edm, linear, rectified_flow
from diffusion.weightings import constant, min_snr, truncated_snr


def objective(schedule, kind, weighting):
    form = PARAMETERIZATIONS[kind]()
    return Objective(schedule, form, weighting, TIME_SAMPLERS["uniform"]())


@pytest.mark.parametrize("schedule", [linear(), rectified_flow(), edm()])
@pytest.mark.parametrize("kind", PARAMETERIZATIONS)
def test_constant_is_one_on_the_raw_loss(schedule, kind):
    level = schedule.level(np.linspace(*schedule.t_range, 50))
    np.testing.assert_array_equal(objective(schedule, kind, constant()).raw_weight(level), 1.0)


@pytest.mark.parametrize(
    ("kind", "weight"),
    [
        ("x0", lambda snr: np.minimum(snr, 5.0)),
        ("eps", lambda snr: np.minimum(5.0 / snr, 1.0)),
        ("v", lambda snr: np.minimum(snr, 5.0) / (snr + 1.0)),
    ],
)
def test_min_snr_on_each_loss(kind, weight):
    """The table of Hang et al. 2023 for x0, eps and v."""
    level = linear().level(np.arange(1000))
    got = objective(linear(), kind, min_snr(gamma=5.0)).raw_weight(level)
    np.testing.assert_allclose(got, weight(np.exp(level.logsnr)), rtol=1e-10)


def test_weight_on_x0_does_not_depend_on_what_is_predicted():
    level = linear().level(np.arange(1000))
    curves = [objective(linear(), k, min_snr()).log_x0_weight(level) for k in PARAMETERIZATIONS]
    for curve in curves:
        np.testing.assert_array_equal(curve, curves[0])
    assert isinstance(curves[0], np.ndarray)


@pytest.mark.parametrize("kind", PARAMETERIZATIONS)
@pytest.mark.parametrize("schedule", [linear(), rectified_flow(), edm()])
def test_finite_in_float32_over_the_whole_range(kind, schedule):
    t = jnp.linspace(*schedule.t_range, 200)
    for weighting in (constant(), min_snr()):
        weight = objective(schedule, kind, weighting).raw_weight(schedule.level(t))
        assert weight.dtype == jnp.float32
        assert jnp.all(jnp.isfinite(weight))


def test_truncated_snr_within_bounds():
    level = linear().level(np.arange(1000))
    got = objective(linear(), "x0", truncated_snr(high=5.0)).raw_weight(level)
    np.testing.assert_allclose(got, np.clip(np.exp(level.logsnr), 1.0, 5.0), rtol=1e-10)
    with pytest.raises(ValueError, match=r"high=0\.5 must be 1 or more"):
        truncated_snr(high=0.5)


def test_gamma_must_be_positive():
    with pytest.raises(ValueError, match="gamma=0"):
        min_snr(gamma=0.0)
