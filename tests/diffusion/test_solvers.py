"""Solvers against closed forms (in float64 numpy) and against other people's programs."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import PARAMETERIZATIONS, SCHEDULES, Prediction, clip, denoiser
from diffusion.gaussian import posterior
from diffusion.grids import respaced, uniform
from diffusion.levels import NoiseLevel, alpha_sigma
from diffusion.schedules import cosine, edm, linear, rectified_flow
from diffusion.solvers import ddim, ddpm
from tests.golden.diffusion.toy import eps_of, fraction_of

FOLDER = pathlib.Path(__file__).parents[1] / "golden/diffusion"
OPENAI, DIFFUSERS = np.load(FOLDER / "openai.npz"), np.load(FOLDER / "diffusers.npz")
RNG = np.random.default_rng(0)


def run(solver, grid, denoise, start, noises):
    """All states, the first one included; numpy in, float64 numpy out."""
    plan = solver.plan(grid)
    states = [solver.init(start)]
    for k, noise in enumerate(noises):
        row = jax.tree.map(lambda leaf, k=k: leaf[k], plan)
        states.append(solver.step(states[-1], denoise, row, noise))
    return np.stack([solver.output(state) for state in states])


def gaussian_denoiser(mean, variance):
    """The exact denoiser of data N(mean, variance)."""

    def denoise(x, level):
        total = level.alpha**2 * variance + level.sigma**2
        x0 = mean + level.alpha * variance / total * (x - level.alpha * mean)
        # sigma E[eps | x] without the division of a difference by sigma.
        eps = level.sigma / total * (x - level.alpha * mean)
        return Prediction(x0, eps)

    return denoise


def moments(solver, grid, mean, variance):
    """Exact mean and variance after sampling N(mean, variance) with its exact denoiser.

    Every step is affine in the state and the noise, so three runs of one step tell it.
    """
    m, v = grid.alpha[0] * mean, grid.alpha[0] ** 2 * variance + grid.sigma[0] ** 2
    denoise = gaussian_denoiser(mean, variance)
    plan = solver.plan(grid)
    for k in range(len(plan.x0_coef)):
        row = jax.tree.map(lambda leaf, k=k: leaf[k], plan)

        def step(x, noise, row=row):
            return solver.step(np.array([x]), denoise, row, np.array([noise]))[0]

        offset = step(0.0, 0.0)
        slope, spread = step(1.0, 0.0) - offset, step(0.0, 1.0) - offset
        m, v = offset + slope * m, slope**2 * v + spread**2
    return m, v


# --- closed forms


@pytest.mark.parametrize("schedule", [linear(), cosine(timesteps=400), rectified_flow(), edm()])
@pytest.mark.parametrize("solver", [ddpm(), ddpm("fixed_large"), ddim(0.0), ddim(0.5), ddim(1.0)])
def test_gaussian_data_come_out_as_they_are(schedule, solver):
    """Mean and variance converge to those of the data on every scaling."""
    mean, variance = 0.4, 0.3
    errors = []
    for steps in (50, 200):
        m, v = moments(solver, uniform()(schedule, steps, "zero"), mean, variance)
        errors.append((abs(m - mean), abs(v - variance)))
    assert max(errors[1]) < 0.02
    assert sum(errors[1]) < 0.5 * sum(errors[0])


def test_fixed_large_is_exact_for_unit_variance_at_any_number_of_steps():
    for steps in (2, 5, 50):
        grid = respaced()(linear(), steps, "sigma_min")
        m, v = moments(ddpm("fixed_large"), grid, 0.0, 1.0)
        assert (m, v) == (0.0, pytest.approx(1.0, abs=1e-12))


@pytest.mark.parametrize("schedule", [linear(), rectified_flow(), edm()])
def test_fixed_small_is_exact_for_a_single_image_at_any_number_of_steps(schedule):
    for steps in (2, 5, 50):
        grid = uniform()(schedule, steps, "sigma_min")
        m, v = moments(ddpm("fixed_small"), grid, 0.7, 0.0)
        assert m == pytest.approx(grid.alpha[-1] * 0.7, rel=1e-10)
        assert v == pytest.approx(grid.sigma[-1] ** 2, rel=1e-10)


@pytest.mark.parametrize("schedule", [linear(), rectified_flow(), edm()])
def test_ddim_converges_to_the_flow_of_gaussian_data_at_first_order(schedule):
    """x_s = mean part + deviation scaled by the marginal deviations: the exact ODE solution."""
    mean, variance, start = 0.4, 0.3, np.array([1.3])
    errors = []
    for steps in (100, 200, 400):
        grid = uniform()(schedule, steps, "sigma_min")
        total = np.sqrt(grid.alpha**2 * variance + grid.sigma**2)
        exact = grid.alpha[-1] * mean + total[-1] / total[0] * (start - grid.alpha[0] * mean)
        states = run(
            ddim(0.0), grid, gaussian_denoiser(mean, variance), start, np.zeros((steps, 1))
        )
        errors.append(abs(states[-1] - exact).item())
    order = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(order, 1.0, atol=0.15)


@pytest.mark.parametrize("schedule", [linear(timesteps=200), cosine(timesteps=200)])
def test_ddim_of_eta_one_is_ddpm_with_fixed_small(schedule):
    start, noises = RNG.standard_normal((2, 3)), RNG.standard_normal((200, 2, 3))
    grid = respaced()(schedule, 200, "zero")
    denoise = gaussian_denoiser(0.2, 0.5)
    a, b = (run(solver, grid, denoise, start, noises) for solver in (ddim(1.0), ddpm()))
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("solver", [ddpm(), ddpm("fixed_large"), ddim(0.0), ddim(0.7)])
@pytest.mark.parametrize("schedule", [linear(), rectified_flow(), edm()])
def test_networks_of_one_denoiser_give_one_trajectory(solver, schedule):
    """eps, x0, v, flow and EDM's F in float32, without clipping."""
    grid = uniform()(schedule, 25, "zero")
    shape = (2, 4, 4, 1)
    rng = np.random.default_rng(1)
    start = (grid.sigma[0] * rng.standard_normal(shape)).astype(np.float32)
    noises = rng.standard_normal((25, *shape)).astype(np.float32)
    exact = gaussian_denoiser(0.3, 0.25)
    expected = run(solver, grid, exact, start.astype(np.float64), noises.astype(np.float64))
    for kind, make in PARAMETERIZATIONS.items():
        form = make()

        def denoise(x, level, form=form):
            prediction = exact(x, level)
            raw = form.target(prediction.x0, prediction.eps, level)
            return Prediction(*form.prediction(raw, x, level))

        double = run(solver, grid, denoise, start.astype(np.float64), noises.astype(np.float64))
        np.testing.assert_allclose(double, expected, rtol=1e-7, atol=1e-9, err_msg=kind)
        if kind in ("v", "flow", "edm"):  # the two others divide by alpha or sigma near 0
            single = run(solver, grid, denoise, jnp.asarray(start), jnp.asarray(noises))
            np.testing.assert_allclose(single, expected, rtol=1e-5, atol=1e-5, err_msg=kind)


def test_ddim_does_not_see_the_scaling():
    """On one logsnr grid a vp and a ve sampler take the same path, up to the factor alpha."""
    vp = respaced()(linear(), 20, "zero")
    ve = NoiseLevel(vp.t, vp.logsnr, *alpha_sigma(vp.logsnr, "ve"))
    start, noises = RNG.standard_normal((2, 3)), RNG.standard_normal((20, 2, 3))
    for solver in (ddim(0.0), ddim(0.5), ddpm("fixed_small")):
        a = run(solver, vp, gaussian_denoiser(0.2, 0.5), start, noises)
        b = run(solver, ve, gaussian_denoiser(0.2, 0.5), start / vp.alpha[0], noises)
        np.testing.assert_allclose(a / vp.alpha[:, None, None], b, rtol=1e-9, atol=1e-9)


# --- rules


@pytest.mark.parametrize("solver", [ddpm(), ddpm("fixed_large"), ddim(1.0)])
def test_the_step_to_clean_data_adds_no_noise(solver):
    """Trap: with the variance beta it would leave visible noise on a short grid."""
    grid = uniform()(edm(), 3, "zero")
    start = np.ones((1, 2))
    loud = run(solver, grid, gaussian_denoiser(0.0, 1.0), start, np.ones((3, 1, 2)))
    noises = np.ones((3, 1, 2))
    noises[-1] = 50.0
    np.testing.assert_array_equal(
        run(solver, grid, gaussian_denoiser(0.0, 1.0), start, noises)[-1], loud[-1]
    )


@pytest.mark.parametrize("solver", [ddpm(), ddpm("fixed_large"), ddim(1.0)])
def test_a_last_step_to_sigma_min_does(solver):
    grid = respaced()(linear(), 3, "sigma_min")
    start = np.ones((1, 2))
    states = [
        run(solver, grid, gaussian_denoiser(0.0, 1.0), start, np.full((3, 1, 2), z))[-1]
        for z in (0.0, 1.0)
    ]
    assert np.all(abs(states[0] - states[1]) > 1e-3)


def test_fixed_large_takes_the_copied_variance_at_its_last_entry():
    grid = respaced()(linear(), 1000, "zero")
    plan = ddpm("fixed_large").plan(grid)
    assert plan.log_large[-1] == plan.log_small[-2] == plan.log_small[-1]
    np.testing.assert_allclose(np.exp(plan.log_large[:-1]), linear().betas[:0:-1])
    # learned_range keeps beta_0 as its upper end.
    learned = ddpm("learned_range").plan(grid)
    assert np.exp(learned.log_large[-1]) == pytest.approx(1e-4)


def test_betas_are_those_of_the_visited_chain():
    grid = respaced()(linear(), 10, "zero")
    alpha_bar = grid.alpha**2
    plan = ddpm("fixed_large").plan(grid)
    expected = 1.0 - alpha_bar[:-1] / alpha_bar[1:]
    np.testing.assert_allclose(np.exp(plan.log_large[:-1]), expected[:-1])


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("schedule", [linear(), rectified_flow(), edm()])
def test_ddim_keeps_the_marginal_deviation(eta, schedule):
    plan = ddim(eta).plan(uniform()(schedule, 30, "zero"))
    np.testing.assert_allclose(plan.eps_coef**2 + plan.noise_std**2, plan.next.sigma**2)
    variance = posterior(plan.now, plan.next).variance
    np.testing.assert_allclose(plan.noise_std**2, eta**2 * variance)


@pytest.mark.parametrize("solver", [ddpm(), ddpm("learned_range"), ddim(0.5)])
@pytest.mark.parametrize("schedule", [linear(), cosine(timesteps=4000), rectified_flow(), edm()])
@pytest.mark.parametrize("last_step", ["zero", "sigma_min"])
def test_plans_are_finite_float64_of_one_length(solver, schedule, last_step):
    for steps in (1, 2, 100):
        plan = solver.plan(uniform()(schedule, steps, last_step))
        assert all(leaf.shape == (steps,) for leaf in jax.tree.leaves(plan))
        assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(plan))
        finite = plan._replace(next=plan.next._replace(logsnr=np.zeros(steps)))
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(finite))


def test_learned_range_needs_a_learned_variance():
    grid = respaced()(linear(), 2, "zero")
    with pytest.raises(ValueError, match=r"learned_range.*this one predicts none"):
        run(
            ddpm("learned_range"),
            grid,
            gaussian_denoiser(0.0, 1.0),
            np.ones((1, 1)),
            np.ones((2, 1, 1)),
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ddpm("fixedlarge"), "variance='fixedlarge'.*did you mean 'fixed_large'"),
        (lambda: ddim(1.5), "eta=1.5"),
    ],
)
def test_impossible_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- other people's programs


def toy_denoiser(schedule, learned, rule, eps_after_clip="rederive"):
    """The golden files' network, clipped; for numpy arrays."""

    def denoise(x, level, condition=None):
        time = schedule.network_time(level)
        raw = eps_of(np, x, time)
        fraction = fraction_of(np, x, time) if learned else None
        return Prediction(*PARAMETERIZATIONS["eps"]().prediction(raw, x, level), fraction)

    clipped = clip(denoise, rule, eps_after_clip)
    return lambda x, level: clipped(x, level, None)


def toy_in_jax(schedule, learned, rule, eps_after_clip="rederive"):
    """The same through `denoiser`, in float32."""

    def network(x, time, condition):
        time = time[:, None, None, None]
        parts = [eps_of(jnp, x, time), fraction_of(jnp, x, time)]
        return jnp.concatenate(parts[: 1 + learned], -1)

    joined = denoiser(network, schedule, PARAMETERIZATIONS["eps"](), learned_variance=learned)
    clipped = clip(joined, rule, eps_after_clip)
    return lambda x, level: clipped(x, level, None)


def compare(
    solver, schedule, grid, start, noises, golden, learned, rule, eps_after_clip="rederive"
):
    """Against states after the first, middle and last step; exactly, then in float32."""
    rows = [1, len(noises) // 2 + 1, len(noises)]
    args = (schedule, learned, rule, eps_after_clip)
    double = run(solver, grid, toy_denoiser(*args), start, noises)[rows]
    np.testing.assert_allclose(double, golden, rtol=1e-7, atol=1e-9)
    single = run(
        solver,
        grid,
        toy_in_jax(*args),
        jnp.asarray(start, jnp.float32),
        jnp.asarray(noises, jnp.float32),
    )[rows]
    # Unclipped states reach 1e4, of which float32 keeps its share.
    np.testing.assert_allclose(single, golden, rtol=1e-5, atol=1e-5 * max(1.0, abs(golden).max()))


CHAINS = [("linear", 1000, 10), ("cosine", 400, 7)]


@pytest.mark.parametrize(("name", "timesteps", "steps"), CHAINS)
@pytest.mark.parametrize("rule", ["static", "none"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_ddpm_of_openai(name, timesteps, steps, rule, variance):
    schedule, key = SCHEDULES[name](timesteps=timesteps), f"sample/{name}/{timesteps}/{steps}"
    compare(
        ddpm(variance),
        schedule,
        respaced()(schedule, steps, "zero"),
        OPENAI[f"{key}/start"],
        OPENAI[f"{key}/noise"],
        OPENAI[f"{key}/ddpm/{variance}/{rule == 'static'}"],
        variance == "learned_range",
        rule,
    )


@pytest.mark.parametrize(("name", "timesteps", "steps"), CHAINS)
@pytest.mark.parametrize("rule", ["static", "none"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_of_openai(name, timesteps, steps, rule, eta):
    schedule, key = SCHEDULES[name](timesteps=timesteps), f"sample/{name}/{timesteps}/{steps}"
    compare(
        ddim(eta),
        schedule,
        respaced()(schedule, steps, "zero"),
        OPENAI[f"{key}/start"],
        OPENAI[f"{key}/noise"],
        OPENAI[f"{key}/ddim/{eta}/{rule == 'static'}"],
        False,
        rule,
    )


def diffusers_grid():
    """Its 'leading' spacing, with alpha_bar = 1 after the last step."""
    return linear().level(np.append(DIFFUSERS["t"], -1))


@pytest.mark.parametrize("rule", ["static", "none"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_ddpm_of_diffusers(rule, variance):
    compare(
        ddpm(variance),
        linear(),
        diffusers_grid(),
        DIFFUSERS["start"],
        DIFFUSERS["noise"],
        DIFFUSERS[f"ddpm/{variance}/{rule == 'static'}"],
        variance == "learned_range",
        rule,
    )


@pytest.mark.parametrize("eps_after_clip", ["rederive", "raw"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_of_diffusers(eta, eps_after_clip):
    """Trap: it keeps the raw noise after clipping unless use_clipped_model_output is set."""
    compare(
        ddim(eta),
        linear(),
        diffusers_grid(),
        DIFFUSERS["start"],
        DIFFUSERS["noise"],
        DIFFUSERS[f"ddim/{eta}/{eps_after_clip}"],
        False,
        "static",
        eps_after_clip,
    )


def test_the_two_rules_of_noise_after_clipping_differ():
    raw, rederived = (DIFFUSERS[f"ddim/0.0/{rule}"][-1] for rule in ("raw", "rederive"))
    assert np.max(abs(raw - rederived)) > 0.1
