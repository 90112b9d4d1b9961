"""Zero terminal SNR, from the schedule through the loss to the samplers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import (
    PARAMETERIZATIONS,
    SCHEDULES,
    SOLVERS,
    TIME_SAMPLERS,
    WEIGHTINGS,
    Objective,
    Uncertainty,
    denoiser,
    sample,
    sample_keys,
)
from diffusion.gaussian import full_chain
from diffusion.grids import respaced, uniform
from diffusion.schedules import (
    Discrete,
    edm,
    linear,
    rectified_flow,
    vdm_scalar,
    ve,
    vp,
    zero_terminal_snr,
)
from diffusion.time_samplers import Draw

KEEP = ("x0", "v", "flow")


def objective(schedule, kind="v", weighting="constant", sampler="uniform", **kwargs):
    form = PARAMETERIZATIONS[kind]()
    return Objective(schedule, form, WEIGHTINGS[weighting](), TIME_SAMPLERS[sampler](), **kwargs)


@pytest.mark.parametrize("schedule", [linear(), vp(), rectified_flow()])
def test_alpha_is_an_affine_map_that_keeps_its_start(schedule):
    t = np.linspace(*schedule.t_range, 50)
    if isinstance(schedule, Discrete):
        t = np.arange(schedule.num_timesteps)
    before, after = schedule.alpha(t), zero_terminal_snr(schedule).alpha(t)
    expected = (before - before[-1]) * before[0] / (before[0] - before[-1])
    np.testing.assert_allclose(after, expected, atol=1e-12)
    assert after[0] == pytest.approx(before[0], rel=1e-15)
    assert after[-1] == 0.0


def test_on_a_straight_path_it_stays_straight():
    level = zero_terminal_snr(rectified_flow(margin=0.1)).level(np.linspace(0.1, 0.9, 9))
    np.testing.assert_allclose(level.alpha, 0.9 * np.linspace(1.0, 0.0, 9), atol=1e-15)
    np.testing.assert_allclose(level.alpha + level.sigma, 1.0)


@pytest.mark.parametrize("make", [edm, ve])
def test_a_constant_alpha_is_refused(make):
    with pytest.raises(ValueError, match="alpha is 1 at every time of a 've' schedule"):
        zero_terminal_snr(make())


def test_a_learned_schedule_stays_learned():
    zero = zero_terminal_snr(vdm_scalar())
    params = zero.init(jax.random.key(0))
    assert params.keys() == {"b", "w"}
    moved = zero.bind({"b": np.float64(-10.0), "w": np.float64(12.0)})
    assert moved.logsnr(0.0) == pytest.approx(10.0)
    assert moved.logsnr(1.0) == -np.inf
    slope = jax.grad(lambda b: zero.bind(params | {"b": b}).logsnr(jnp.float32(0.5)))(-13.3)
    step = (zero.bind({"b": -13.2, "w": 18.3}).logsnr(0.5) - zero.logsnr(0.5)) / 0.1
    assert slope == pytest.approx(step, rel=0.02)


@pytest.mark.parametrize("schedule", [linear(), vp()])
@pytest.mark.parametrize("kind", PARAMETERIZATIONS)
def test_parameterizations_that_say_nothing_there_are_refused(schedule, kind):
    zero = zero_terminal_snr(schedule)
    if kind in KEEP:
        assert objective(zero, kind)
    else:
        with pytest.raises(ValueError, match=r"ends in pure noise.*take v, x0 or flow"):
            objective(zero, kind)
    assert objective(schedule, kind)


def test_the_uncertainty_is_refused():
    with pytest.raises(ValueError, match=r"uncertainty.*pure noise"):
        objective(zero_terminal_snr(linear()), uncertainty=Uncertainty(8))


@pytest.mark.parametrize("kind", KEEP)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_log_weights_are_finite_or_none_at_all(kind, weighting):
    ours = objective(zero_terminal_snr(linear()), kind, weighting)
    level = ours.schedule.level(np.array([0.0, 500.0, 998.0, 999.0]))
    log_weight = ours.log_x0_weight(level, np.array([-2.0, -3.0, -20.0, -np.inf]))
    assert np.all(np.isfinite(log_weight[:3]))
    # SNR, and what falls with it, gives no weight to pure noise; the others are of order 1.
    nothing = {"snr", "min_snr", "soft_min_snr", "p2", "sigmoid", "likelihood"}
    assert (log_weight[3] == -np.inf) == (weighting in nothing)
    assert not np.isnan(ours.raw_weight(level, -3.0)).any()


@pytest.mark.parametrize("kind", KEEP)
@pytest.mark.parametrize("sampler", ["uniform", "loss_second_moment", "log_normal"])
def test_loss_and_gradient_are_finite(kind, sampler):
    ours = objective(zero_terminal_snr(linear(timesteps=40)), kind, "likelihood", sampler)
    x0 = jax.random.normal(jax.random.key(1), (64, 2, 2, 1))

    def loss(scale):
        drawn = ours.time_sampler.draw(jax.random.key(2), 64, ours.schedule, ours.init_state())
        last = ours.schedule.level(jnp.full(64, 39.0))

        def network(x, time, condition):
            return scale * x + 1e-4 * time[:, None, None, None]

        return sum(
            ours.loss_at(network, x0, None, at, 0.5 * x0)[0].mean()
            for at in (drawn, Draw(last, 1.0, jnp.full(64, -jnp.inf)))
        )

    for value in jax.value_and_grad(loss)(0.3):
        assert np.isfinite(value)


def test_tables_of_the_chain_are_finite():
    chain = full_chain(zero_terminal_snr(linear()))
    assert all(np.all(np.isfinite(table)) for table in chain)
    # All that is known of z_{T-2} at pure noise is x0.
    assert chain.z_coef[-1] == 0.0
    assert chain.log_large[-1] == 0.0


@pytest.mark.parametrize("schedule", [linear(), vp(), rectified_flow()])
@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_sampling_begins_at_pure_noise(schedule, name):
    zero = zero_terminal_snr(schedule)
    form = PARAMETERIZATIONS["v"]()
    grid = (uniform() if zero.num_timesteps is None else respaced())(zero, 5, "zero")
    solver = SOLVERS[name]()
    plan = solver.plan(grid)
    assert grid.logsnr[0] == -np.inf
    denoise = denoiser(lambda x, time, condition: -0.3 * x, zero, form)
    keys = sample_keys(jax.random.key(0), jnp.arange(3))
    images = sample(denoise, solver, plan, keys, (4, 4, 1))
    assert np.all(np.isfinite(images))
    if name == "ddim" and zero.scaling == "vp":
        # x0 = -v = 0.3 z and eps = z.
        first = jax.tree.map(lambda leaf: jnp.float32(leaf[0]), plan)
        z = jnp.ones((1, 2, 2, 1))
        got = solver.step(z, lambda x, level: denoise(x, level), first, z)
        np.testing.assert_allclose(got, 0.3 * grid.alpha[1] + grid.sigma[1], rtol=1e-5)


def test_every_entry_of_the_registry_but_ve_has_one():
    for name, make in SCHEDULES.items():
        if name not in ("table", "zero_terminal_snr") and make().scaling != "ve":
            zero = zero_terminal_snr(make())
            assert zero.level(zero.t_range[1]).alpha == 0.0
