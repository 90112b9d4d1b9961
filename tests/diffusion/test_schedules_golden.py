"""Schedules, the bound of continuous time and the uncertainty against others' programs."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import (
    PARAMETERIZATIONS,
    SCHEDULES,
    TIME_SAMPLERS,
    WEIGHTINGS,
    NoiseLevel,
    Objective,
    Uncertainty,
)
from diffusion.schedules import from_betas, vdm_network, vdm_scalar, zero_terminal_snr
from diffusion.time_samplers import Draw

FOLDER = pathlib.Path(__file__).parents[1] / "golden/diffusion"
GOLDEN, VDM, EDM2 = (np.load(FOLDER / f"{name}.npz") for name in ("schedules", "vdm", "edm2"))
INDEX, T = GOLDEN["index"], GOLDEN["t"]


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_tables_of_diffusers(name):
    schedule = SCHEDULES[name]()
    expected = GOLDEN[f"diffusers/{name}"]
    np.testing.assert_allclose(schedule.alpha(INDEX) ** 2, expected, rtol=1e-11)
    zero = GOLDEN[f"diffusers/zero_terminal/{name}"]
    got = zero_terminal_snr(schedule).alpha(INDEX) ** 2
    np.testing.assert_allclose(got, zero, rtol=1e-8, atol=1e-18)
    assert got[-1] == zero[-1] == 0.0


def test_laplace_of_diffusers_takes_alpha_for_alpha_bar():
    """Its table of alpha_bar is this project's alpha: sqrt(SNR / (1 + SNR))."""
    theirs = GOLDEN["diffusers/laplace"]
    np.testing.assert_allclose(SCHEDULES["laplace"]().alpha(INDEX), theirs, rtol=1e-9)
    logsnr = np.log(theirs) - np.log1p(-theirs)
    np.testing.assert_allclose(logsnr[[0, -1]], [3.84, -3.42], atol=0.01)


@pytest.mark.parametrize("name", ["vp", "sub_vp"])
def test_vp_and_sub_vp_of_score_sde(name):
    level = SCHEDULES[name]().level(T)
    np.testing.assert_allclose(level.alpha, GOLDEN[f"score_sde/{name}/alpha"], rtol=1e-12)
    # Theirs is a difference from 1, of which little is left at 1e-5.
    np.testing.assert_allclose(level.sigma, GOLDEN[f"score_sde/{name}/sigma"], rtol=1e-9)


def test_ve_of_score_sde():
    np.testing.assert_allclose(SCHEDULES["ve"]().sigma(T), GOLDEN["score_sde/ve/sigma"], rtol=1e-12)


@pytest.mark.parametrize(("low", "high"), [(64, 64), (32, 256)])
def test_shifted_cosines_of_k_diffusion(low, high):
    """Its bounds are swapped, so its time runs from noise to data: logsnr(1 - t)."""
    bound = 2.0 * math.log(1e3)
    ends = {"logsnr_min": -bound, "logsnr_max": bound}
    if low == high:
        schedule = SCHEDULES["shifted_cosine"](image_size=256, noise_size=low, **ends)
    else:
        schedule = SCHEDULES["interpolated_cosine"](
            image_size=256, noise_size_start=high, noise_size_end=low, **ends
        )
    theirs = GOLDEN[f"k_diffusion/cosine/{low}/{high}"]
    np.testing.assert_allclose(schedule.logsnr(1.0 - T), theirs, atol=1e-9)


def learned(kind):
    make, key = {
        "learnable_scalar": (vdm_scalar(), "scalar"),
        "learnable_nnet": (vdm_network(features=32), "network"),
    }[kind]
    params = {name: VDM[f"{key}/{name}"] for name in make.init(jax.random.key(0))}
    return make, params, VDM[f"{key}/gamma"]


@pytest.mark.parametrize("kind", ["learnable_scalar", "learnable_nnet"])
def test_gamma_of_vdm(kind):
    schedule, params, gamma = learned(kind)
    np.testing.assert_allclose(-schedule.bind(params).logsnr(VDM["t"]), gamma, rtol=1e-12)
    single = schedule.bind(jax.tree.map(jnp.float32, params))
    np.testing.assert_allclose(-single.logsnr(VDM["t"]), gamma, rtol=1e-5)


@pytest.mark.parametrize("kind", ["learnable_scalar", "learnable_nnet"])
def test_loss_of_vdm(kind):
    """All three parts, in bits/dim; their score model reads gamma, ours the time made of it."""
    schedule, params, _ = learned(kind)
    objective = Objective(
        schedule,
        PARAMETERIZATIONS["eps"](),
        WEIGHTINGS["constant"](),
        TIME_SAMPLERS["low_discrepancy"](),
        loss="vdm",
    )

    def network(z, time, condition):
        gamma = -13.3 + 18.3 * time / 1000.0
        return jnp.tanh(z) + 0.1 * gamma[:, None, None, None]

    with jax.enable_x64(True):
        params = {"schedule": jax.tree.map(jnp.asarray, params)}
        drawn = Draw(schedule.bind(params["schedule"]).level(jnp.asarray(VDM["t"])))
        x0 = jnp.asarray(VDM["pixels"] / 127.5 - 1.0)
        loss, parts = objective.loss_at(network, x0, None, drawn, jnp.asarray(VDM["eps"]), params)
        bits = VDM["pixels"][0].size * math.log(2.0)
        names = {"recon": "reconstruction_bits", "klz": "prior_bits", "diff": "diffusion_bits"}
        for theirs, ours in names.items():
            np.testing.assert_allclose(parts[ours], VDM[f"{kind}/{theirs}"] / bits, rtol=1e-9)
        total = sum(VDM[f"{kind}/{theirs}"] for theirs in names) / bits
        np.testing.assert_allclose(loss, total, rtol=1e-9)


def test_uncertainty_of_edm2():
    params = {name: jnp.asarray(EDM2[name]) for name in ("frequencies", "phases", "kernel")}
    logsnr = jnp.asarray(-2.0 * np.log(EDM2["sigma"].astype(np.float64)), jnp.float32)
    np.testing.assert_allclose(Uncertainty(128)(params, logsnr), EDM2["u"], atol=1e-5)


def test_betas_of_any_origin_keep_a_terminal_beta_of_one():
    betas = np.array([0.1, 0.2, 1.0])
    schedule = from_betas(betas)
    assert isinstance(schedule.level(2), NoiseLevel)
    assert schedule.alpha(2) == 0.0
    np.testing.assert_allclose(schedule.betas, betas, rtol=1e-14)
