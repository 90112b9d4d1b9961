import json
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion import GRIDS
from diffusion.grids import (
    ALIGN_YOUR_STEPS,
    LAST_STEPS,
    align_your_steps,
    ddim_stride,
    karras,
    leading,
    linspace,
    quadratic,
    respaced,
    trailing,
    uniform,
    uniform_logsnr,
)
from diffusion.schedules import cosine, edm, linear, rectified_flow, scaled_linear

FOLDER = pathlib.Path(__file__).parents[1] / "golden/diffusion"
GOLDEN = np.load(FOLDER / "openai.npz")
DIFFUSERS = json.loads((FOLDER / "grids.json").read_text())
SCHEDULES = [linear(), cosine(timesteps=400), rectified_flow(), edm()]


@pytest.mark.parametrize("timesteps", [1000, 4000])
@pytest.mark.parametrize("steps", [2, 3, 10, 21, 25, 50, 100, 250])
def test_respaced_visits_openais_indices(timesteps, steps):
    grid = respaced()(linear(timesteps=timesteps), steps, "zero")
    np.testing.assert_array_equal(grid.t[::-1][1:], GOLDEN[f"respaced/{timesteps}/{steps}"])


def test_respaced_10_of_1000():
    grid = respaced()(linear(), 10, "zero")
    np.testing.assert_array_equal(grid.t, [999, 888, 777, 666, 555, 444, 333, 222, 111, 0, -1])


INDICES = ("respaced", "ddim_stride", "quadratic", "leading", "linspace", "trailing")
# Grids that visit neither or only one end of the schedule's range.
START_BELOW = ("ddim_stride", "quadratic", "leading", "align_your_steps")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("last_step", LAST_STEPS)
@given(steps=st.integers(1, 60))
def test_a_grid_falls_from_noise_to_its_end(schedule, kind, last_step, steps):
    if kind in INDICES and schedule.num_timesteps is None:
        with pytest.raises(ValueError, match=rf"{kind!r}.*Use grid 'uniform'"):
            GRIDS[kind]()(schedule, steps, last_step)
        return
    if kind == "ddim_stride":
        # 60 levels and fewer, but not all, are a stride of 400 and of 1000.
        steps = max(n for n in (1, 2, 4, 5, 10, 20, 50) if n <= steps) - (last_step == "sigma_min")
        steps = max(steps, 1)
    grid = GRIDS[kind]()(schedule, steps, last_step)
    low, high = schedule.t_range
    assert all(field.shape == (steps + 1,) and field.dtype == np.float64 for field in grid)
    assert np.all(np.diff(grid.logsnr) > 0)
    assert np.all(np.diff(grid.t) < 0)
    assert np.all(np.isfinite(grid.logsnr[:-1]))
    if kind in START_BELOW:
        assert grid.t[0] <= high
    else:
        assert grid.t[0] == pytest.approx(high, abs=1e-9)
    if last_step != "sigma_min":
        assert (grid.logsnr[-1], grid.alpha[-1], grid.sigma[-1]) == (np.inf, 1.0, 0.0)
        assert grid.t[-1] == schedule.data.t
    elif kind == "align_your_steps":
        assert np.exp(-0.5 * grid.logsnr[-1]) == pytest.approx(0.029)
    else:
        assert grid.t[-1] == pytest.approx(low, abs=1e-9)
        assert grid.sigma[-1] > 0.0


def test_indices_of_published_grids():
    """diffusers' np.arange and np.linspace of 1000 steps; OpenAI's "ddim25"; the DDIM authors'."""
    t = {kind: GRIDS[kind]()(linear(), 4, "zero").t for kind in INDICES[1:]}
    np.testing.assert_array_equal(t["leading"], [750, 500, 250, 0, -1])
    np.testing.assert_array_equal(leading(offset=1)(linear(), 4, "zero").t, [751, 501, 251, 1, -1])
    np.testing.assert_array_equal(t["linspace"], [999, 749, 500, 250, -1])
    np.testing.assert_array_equal(linspace()(linear(), 4, "sigma_min").t, [999, 749, 500, 250, 0])
    np.testing.assert_array_equal(t["trailing"], [999, 749, 499, 249, -1])
    np.testing.assert_array_equal(trailing()(linear(), 4, "sigma_min").t, [999, 749, 499, 249, 0])
    np.testing.assert_array_equal(t["ddim_stride"], [750, 500, 250, 0, -1])
    np.testing.assert_array_equal(
        ddim_stride()(linear(), 25, "zero").t[:-1], np.arange(960, -1, -40)
    )
    # floor(800 (i / 9)^2)
    ten = quadratic()(linear(), 10, "zero").t
    np.testing.assert_array_equal(ten, [800, 632, 483, 355, 246, 158, 88, 39, 9, 0, -1])
    # floor would visit 0 twice.
    np.testing.assert_array_equal(quadratic()(linear(), 50, "zero").t[-6:], [5, 3, 2, 1, 0, -1])


def test_karras_on_an_edm_schedule_and_on_others():
    """The published grid of 18 steps; on a table of betas time is what has that sigma / alpha."""
    published = [80, 57.586, 40.786, 28.375, 19.352, 12.910, 8.4009, 5.3152, 3.2568, 1.9233, 1.0882]
    published += [0.5853, 0.2964, 0.1395, 0.0599, 0.0229, 0.0075, 0.002, 0.0]
    np.testing.assert_allclose(karras()(edm(), 18, "zero").sigma, published, rtol=1e-3, atol=5e-5)
    a, b = karras()(edm(), 18, "zero"), uniform()(edm(), 18, "zero")
    np.testing.assert_allclose(a.sigma, b.sigma, rtol=1e-12)
    vp = karras(sigma_min=0.02, sigma_max=80.0)(linear(), 18, "zero")
    ve = karras(sigma_min=0.02, sigma_max=80.0)(edm(), 18, "zero")
    np.testing.assert_allclose(vp.sigma / vp.alpha, ve.sigma, rtol=1e-12)
    np.testing.assert_allclose(linear().logsnr(vp.t), vp.logsnr, rtol=1e-9)


def test_uniform_logsnr_takes_equal_steps():
    grid = uniform_logsnr(sigma_min=0.05, sigma_max=20.0)(linear(), 12, "sigma_min")
    np.testing.assert_allclose(np.diff(grid.logsnr), 2.0 * np.log(400.0) / 12)


@pytest.mark.parametrize("model", ALIGN_YOUR_STEPS)
def test_align_your_steps(model):
    """Ten steps are the published levels; twenty have them at every other place."""
    schedule = edm(sigma_max=700.0)
    published = np.array(ALIGN_YOUR_STEPS[model])
    np.testing.assert_allclose(align_your_steps(model)(schedule, 10, "sigma_min").sigma, published)
    sigma = align_your_steps(model)(schedule, 20, "zero").sigma
    np.testing.assert_allclose(sigma[:-2:2], published[:-1])
    np.testing.assert_allclose(sigma[1::2], np.sqrt(published[1:] * published[:-1]))
    assert sigma[-1] == 0.0


@pytest.mark.parametrize("steps", [4, 10, 30])
def test_diffusers_grids(steps):
    """Its three spacings, by the scheduler that has them; the sigmas and times that it derives."""
    stable = scaled_linear()
    for theirs, grid in (
        ("ddim/leading", leading()),
        ("ddim/offset", leading(offset=1)),
        ("ddim/linspace", respaced()),
        ("ddim/trailing", trailing()),
        ("dpm/linspace", linspace()),
        ("dpm/trailing", trailing()),
    ):
        t = grid(stable, steps, "zero").t
        np.testing.assert_array_equal(t[:-1], DIFFUSERS[f"{theirs}/{steps}"], err_msg=theirs)
    for theirs, grid in (("karras", karras()), ("exponential", uniform_logsnr())):
        levels = grid(stable, steps, "zero")
        sigma = levels.sigma / levels.alpha
        # Its tables are float32.
        np.testing.assert_allclose(sigma, DIFFUSERS[f"{theirs}/{steps}"], rtol=2e-5)
    # Trap: its set_timesteps(N) shifts times that its constructor shifted already.
    t = uniform(shift=3.0)(rectified_flow(), steps, "zero").t
    np.testing.assert_allclose(t, DIFFUSERS[f"shift/{steps}"], atol=2e-5)


@pytest.mark.parametrize("model", ALIGN_YOUR_STEPS)
def test_align_your_steps_of_diffusers(model):
    sigma = align_your_steps(model)(edm(sigma_max=700.0), 10, "zero").sigma
    np.testing.assert_allclose(sigma, DIFFUSERS[f"align_your_steps/{model}"])


def test_mean_visits_the_least_noise_and_then_goes_to_clean_data():
    """As many calls as the others; where 'zero' begins its last step sooner, it does not."""
    for make in (respaced, linspace, uniform, karras, align_your_steps):
        mean = make()(linear(), 10, "mean")
        before = make()(linear(), 9, "sigma_min")
        np.testing.assert_allclose(mean.t, [*before.t, -1.0])
    t = uniform(shift=3.0)(rectified_flow(margin=0.1), 5, "mean").t
    np.testing.assert_allclose(t, [0.9, 0.875, 0.75, 0.5625, 0.25, 0.0])


def test_uniform_on_edm_is_karras_grid_with_zero_appended():
    sigma = uniform()(edm(), 18, "zero").sigma
    i = np.arange(18)
    karras = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sigma, [*karras, 0.0], rtol=1e-12)


def test_uniform_on_a_flow_takes_equal_steps_to_the_data():
    """Trap: data appended after an end at t = margin would make the last step trivial."""
    t = uniform()(rectified_flow(), 4, "zero").t
    np.testing.assert_allclose(t, [1.0, 0.75, 0.5, 0.25, 0.0], atol=2e-5)


def test_all_steps_of_a_chain():
    grid = respaced()(linear(timesteps=100), 100, "zero")
    np.testing.assert_array_equal(grid.t, np.arange(99, -2, -1))


@pytest.mark.parametrize(
    ("make", "args", "message"),
    [
        (respaced(), (linear(), 0, "zero"), "steps=0"),
        (respaced(), (linear(), 1001, "zero"), "steps=1001.*has 1000"),
        (respaced(), (linear(), 1000, "sigma_min"), "visits 1001 levels"),
        (
            respaced(),
            (linear(), 10, "sigma_max"),
            "last_step='sigma_max'.*did you mean 'sigma_min'",
        ),
        (ddim_stride(), (linear(), 300, "zero"), "no whole stride visits 300 of 1000.*'respaced'"),
        (trailing(), (linear(), 990, "sigma_min"), "visits a time twice"),
        (leading(offset=40), (linear(), 25, "zero"), "offset=40 leads out of indices 0 to 999"),
        (karras(sigma_max=200.0), (linear(), 9, "zero"), "200 .* does not lie in .* 157"),
        (karras(sigma_min=3.0, sigma_max=2.0), (edm(), 9, "zero"), "from 2 down to 3"),
        (align_your_steps("svd"), (edm(), 10, "zero"), "from 700 .*take another schedule"),
        (uniform(shift=3.0), (edm(), 9, "zero"), "shift=3.0 is of the time of a flow"),
    ],
)
def test_impossible_grids(make, args, message):
    with pytest.raises(ValueError, match=message):
        make(*args)


def test_impossible_arguments():
    with pytest.raises(ValueError, match="rho=0"):
        karras(rho=0)
    with pytest.raises(ValueError, match=r"end=1.5 must lie in \(0, 1\]"):
        quadratic(end=1.5)
    with pytest.raises(ValueError, match="shift=0"):
        uniform(shift=0.0)
    with pytest.raises(ValueError, match="model='sd14': must be one of 'sd15'"):
        align_your_steps("sd14")
