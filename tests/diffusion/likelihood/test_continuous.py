"""The bound of continuous time against the closed form of Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import Prediction
from diffusion.likelihood import VDM
from diffusion.schedules import (
    edm,
    linear,
    rectified_flow,
    shifted_cosine,
    vdm,
    vdm_network,
    vdm_scalar,
    vp,
    zero_terminal_snr,
)

MEAN, VARIANCE = 0.3, 0.2
NETWORK = vdm_network(features=8)
SCHEDULES = {
    "vdm": vdm(),
    "learned_scalar": vdm_scalar().bind({"b": np.float32(-9.0), "w": np.float32(-13.0)}),
    "learned_network": NETWORK.bind(
        jax.device_get(NETWORK.init(jax.random.key(3)) | {"out": 9.0 * jnp.ones(8)})
    ),
    "vp": vp(),
    "shifted_cosine": shifted_cosine(),
    "edm": edm(),
    "flow": rectified_flow(margin=1e-3),
}


def exact(x, level, condition):
    """The denoiser of N(MEAN, VARIANCE)."""
    level = level.like(x)
    total = level.alpha**2 * VARIANCE + level.sigma**2
    rest = x - level.alpha * MEAN
    return Prediction(MEAN + level.alpha * VARIANCE / total * rest, level.sigma / total * rest)


def measure(method, schedule, count=256, size=8):
    """Data of the Gaussian: of any value, not of 256, which only the reconstruction minds."""
    rng = np.random.default_rng(0)
    x0 = jnp.float32(MEAN + VARIANCE**0.5 * rng.standard_normal((count, size, size, 1)))
    keys = jax.random.split(jax.random.key(0), count)
    plan = method.plan(schedule, False)
    return x0, jax.jit(lambda x0, keys: method(exact, schedule, plan, x0, None, keys))(x0, keys)


@pytest.mark.parametrize("variable", ["logsnr", "t"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_diffusion_and_prior_of_gaussian_data(name, variable):
    """1/2 integral of v SNR / (1 + v SNR) d logsnr, whatever is between the ends."""
    schedule = SCHEDULES[name]
    draws = 16 if variable == "logsnr" else 128
    x0, result = measure(VDM(draws=draws, variable=variable), schedule)
    high, low = (float(schedule.logsnr(np.float64(t))) for t in schedule.t_range)
    expected = 0.5 * np.diff([np.log1p(VARIANCE * np.exp(end)) for end in (low, high)])[0]
    got = np.asarray(result.parts["diffusion"]) * np.log(2)
    assert got.std() / 16 < (0.02 if variable == "logsnr" else 0.1) * expected
    assert got.mean() == pytest.approx(expected, abs=4 * got.std() / 16)
    alpha2, sigma2 = 1 / (1 + np.exp(-low)), 1 / (1 + np.exp(low))
    kl = 0.5 * (sigma2 - 1 - np.log(sigma2) + alpha2 * np.mean(np.square(x0), axis=(1, 2, 3)))
    np.testing.assert_allclose(result.parts["prior"] * np.log(2), kl, rtol=2e-3, atol=2e-7)


def test_logsnr_has_the_lower_variance():
    spreads = {
        variable: np.std(measure(VDM(draws=8, variable=variable), vp())[1].parts["diffusion"])
        for variable in ("logsnr", "t")
    }
    assert spreads["logsnr"] < 0.5 * spreads["t"]


def test_terms_average_to_the_diffusion():
    _, result = measure(VDM(draws=16), vdm(), count=4)
    np.testing.assert_allclose(result.terms["bits"].mean(1), result.parts["diffusion"], rtol=1e-5)
    assert np.all(np.diff(result.terms["logsnr"], axis=1) < 0)
    assert result.terms["eps_mse"].shape == (4, 16)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (linear(), "this schedule has 1000 steps: take vlb"),
        (zero_terminal_snr(vp()), r"logsnr 13.\d+ to -inf: take vlb\(timesteps=1000\)"),
    ],
)
def test_what_has_no_bound(schedule, message):
    with pytest.raises(ValueError, match=message):
        VDM().plan(schedule, False)


def test_wrong_options():
    with pytest.raises(ValueError, match="variable='time': must be one of 'logsnr', 't'"):
        VDM(variable="time")
    with pytest.raises(ValueError, match="draws=0: must be 1 or more"):
        VDM(draws=0)
