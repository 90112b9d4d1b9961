"""What holds for every solver, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import PARAMETERIZATIONS, SOLVERS, Prediction, integrate, sample, sample_keys
from diffusion.grids import karras, leading, respaced, trailing, uniform, uniform_logsnr
from diffusion.levels import NoiseLevel, alpha_sigma
from diffusion.schedules import edm, linear, rectified_flow
from diffusion.solvers import (
    at,
    ddim,
    ddpm,
    deis,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s,
    dpmpp_3m,
    dpmpp_3m_sde,
    dpmpp_3s,
    euler,
    heun,
    lms,
    pndm,
    rk4,
    unipc,
)
from tests.diffusion.solvers.walk import GAUSSIAN, MIXTURE, walk

RNG = np.random.default_rng(0)
START = RNG.standard_normal((2, 3))
CHURN = {"s_churn": 8.0, "s_min": 0.02, "s_max": 60.0, "s_noise": 1.003}
# Flow maps ask a network that is told the step, and have tests of their own.
NAMES = [name for name in SOLVERS if name != "flow_map"]
# Every rule, among them those that the names alone do not reach.
ALL = [
    *(SOLVERS[name]() for name in NAMES),
    ddim(0.5),
    euler(**CHURN),
    heun(**CHURN),
    heun(space="flow"),
    heun(space="flow", **CHURN),
    rk4(space="flow"),
    dpmpp_2s("eps"),
    dpmpp_3s("eps"),
    dpmpp_2s(eta=1.0),
    dpmpp_3s("eps", eta=0.5),
    lms(decode=True),
    dpmpp_2m("exact"),
    dpmpp_3m("reference"),
    dpmpp_2m_sde(0.5, "exact"),
    dpmpp_3m_sde(0.5, "reference"),
    *(unipc(p, variant) for p in (1, 2, 3) for variant in ("bh1", "bh2", "exact")),
    unipc(3, corrector=False),
    deis(4),
    lms(1),
    pndm("multistep"),
]
# Explicit rules of high order are unstable over a step from sigma / alpha = 1e5, the default
# margin.
SCHEDULES = [linear(), rectified_flow(margin=0.01), edm()]
# Calls of N steps to clean data, where it is not one a step.
CALLS = {
    "heun": lambda n: 2 * n - 1,
    "rk4": lambda n: 4 * n - 3,
    "dpmpp_2s": lambda n: 2 * n - 1,
    "dpmpp_3s": lambda n: 3 * n - 2,
    "pndm": lambda n: n + 9,
}


def noises_of(solver, grid, schedule, shape):
    return RNG.standard_normal((len(solver.plan(grid, schedule).now.t), *shape))


@pytest.mark.parametrize("solver", ALL, ids=repr)
@pytest.mark.parametrize("last_step", ["zero", "sigma_min"])
def test_plans_are_finite_float64_of_one_length(solver, last_step):
    for schedule in SCHEDULES:
        for steps in (1, 2, 4, 12):
            plan = solver.plan(uniform()(schedule, steps, last_step), schedule)
            ends = [plan.next._replace(logsnr=0.0), plan._replace(next=0.0)]
            for leaf in jax.tree.leaves(ends):
                assert np.all(np.isfinite(leaf))
            leaves = jax.tree.leaves(plan)
            assert {len(leaf) for leaf in leaves} == {len(plan.now.t)}
            assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float64)}


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_a_call(name):
    for steps in (4, 10):
        calls = CALLS.get(name, lambda n: n)(steps)
        plan = SOLVERS[name]().plan(respaced()(linear(), steps, "zero"), linear())
        assert len(plan.now.t) == calls


@pytest.mark.parametrize("solver", ALL, ids=repr)
def test_a_sample_of_one_image_is_that_image(solver):
    """Data at a single point: the last step goes to the prediction, whatever came before."""
    denoise = lambda x, level: Prediction(  # noqa: E731
        0.0 * x + 0.3, (x - level.alpha * 0.3) / level.sigma
    )
    for schedule in SCHEDULES:
        grid = uniform()(schedule, 10, "zero")
        noises = noises_of(solver, grid, schedule, START.shape)
        x = walk(solver, grid, schedule, denoise, grid.sigma[0] * START, noises)[-1]
        np.testing.assert_allclose(x, 0.3, atol=1e-9)


@pytest.mark.parametrize("solver", [s for s in ALL if not isinstance(s, type(pndm()))], ids=repr)
def test_no_solver_sees_the_scaling(solver):
    """On one logsnr grid vp, ve and flow states are one another's up to alpha."""
    paths = []
    for schedule in SCHEDULES:
        logsnr = np.append(np.linspace(-8.0, 7.0, 12), np.inf)
        grid = schedule.level_of_logsnr(logsnr)
        noises = np.random.default_rng(1).standard_normal((100, *START.shape))
        noises = noises[: len(solver.plan(grid, schedule).now.t)]
        x = walk(solver, grid, schedule, MIXTURE, grid.sigma[0] * START, noises)
        plan = solver.plan(grid, schedule)
        paths.append(x[1:] / plan.next.alpha[:, None, None])
    if isinstance(solver, type(ddpm())) and solver.variance == "fixed_large":
        return
    np.testing.assert_allclose(paths[0], paths[1], rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(paths[0], paths[2], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("solver", ALL, ids=repr)
def test_networks_of_one_denoiser_give_one_trajectory(solver):
    """eps, x0 and v in float64; v, flow and EDM's F in float32 too, which do not divide by 0."""
    schedule = linear()
    grid = uniform()(schedule, 12, "zero")
    noises = noises_of(solver, grid, schedule, START.shape)
    start = grid.sigma[0] * START
    expected = walk(solver, grid, schedule, GAUSSIAN, start, noises)
    for kind, make in PARAMETERIZATIONS.items():
        form = make()

        def denoise(x, level, form=form):
            exact = GAUSSIAN(np.asarray(x, np.float64), level)
            raw = form.target(exact.x0, exact.eps, level)
            raw = raw if isinstance(x, np.ndarray) else jnp.asarray(raw, jnp.float32)
            return Prediction(*form.prediction(raw, x, level))

        x = walk(solver, grid, schedule, denoise, start, noises)
        np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1e-8, err_msg=kind)
        if kind in ("v", "flow", "edm"):
            x = walk(solver, grid, schedule, denoise, jnp.float32(start), jnp.float32(noises))
            np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-5, err_msg=kind)


# --- relations


def paths(solvers, schedule, grid):
    noises = RNG.standard_normal((200, *START.shape))
    for solver in solvers:
        calls = len(solver.plan(grid, schedule).now.t)
        yield walk(solver, grid, schedule, MIXTURE, grid.sigma[0] * START, noises[:calls])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_is_ddim(schedule):
    """Euler in both spaces, UniP-1, DEIS and LMS of order 1, all of eta 0."""
    grid = uniform()(schedule, 10, "zero")
    one = (ddim(), euler(), unipc(1, corrector=False), deis(1), lms(1), dpmpp_2m_sde(0.0))
    first, *others = paths(one, schedule, grid)
    for other in others[:-1]:
        np.testing.assert_allclose(other, first, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(others[-1][1], first[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [dpmpp_2m, dpmpp_3m, unipc, deis, lms])
def test_first_step_of_a_multistep_solver_is_ddims(make):
    grid = karras()(edm(), 10, "zero")
    a, b = paths((ddim(), make()), edm(), grid)
    np.testing.assert_allclose(a[1], b[1], rtol=1e-12)
    assert np.max(abs(a[2] - b[2])) > 1e-4


def test_first_step_of_an_sde_solver_is_ancestral():
    grid = uniform()(linear(), 10, "zero")
    for eta in (0.0, 1.0):
        a, b, c = paths((ddim(eta), dpmpp_2m_sde(eta), dpmpp_3m_sde(eta)), linear(), grid)
        np.testing.assert_allclose(a[1], b[1], rtol=1e-9)
        np.testing.assert_allclose(a[1], c[1], rtol=1e-9)


@pytest.mark.parametrize("make", [lms, pndm])
def test_decoded_steps_to_clean_data(make):
    """The last call's own x0 at the last level; before that nothing changes."""
    grid = leading()(linear(), 10, "zero")
    a, b = paths((make(), make(decode=True)), linear(), grid)
    np.testing.assert_array_equal(a[:-1], b[:-1])
    np.testing.assert_allclose(b[-1], MIXTURE(b[-2], at(grid, -2)).x0)
    assert np.max(abs(a[-1] - b[-1])) > 1e-5


def test_no_churn_is_plain_heun():
    for unused in ({"s_churn": 0.0, "s_noise": 2.0}, {"s_churn": 9.0, "s_min": 90.0}):
        a, b = paths((heun(), heun(**unused)), edm(), karras()(edm(), 10, "zero"))
        np.testing.assert_array_equal(a, b)


def test_churn_is_that_of_karras():
    """gamma, capped at sqrt(2) - 1, inside of [s_min, s_max] alone; the level goes with it."""
    grid = karras()(edm(), 10, "zero")
    for s_churn, gamma in ((2.0, 0.2), (100.0, np.sqrt(2.0) - 1.0)):
        plan = heun(s_churn=s_churn, s_min=0.05, s_max=50.0, s_noise=1.007).plan(grid, edm())
        sigma, call = plan.now.sigma[::2], plan.call.sigma[::2]
        inside = (sigma >= 0.05) & (sigma <= 50.0)
        assert 3 <= inside.sum() <= 8
        np.testing.assert_allclose(call, np.where(inside, 1.0 + gamma, 1.0) * sigma)
        np.testing.assert_allclose(plan.churn_std[::2], 1.007 * np.sqrt(call**2 - sigma**2))
        np.testing.assert_array_equal(plan.call.sigma[1::2], plan.now.sigma[1::2])
        np.testing.assert_array_equal(plan.churn_std[1::2], 0.0)


# --- pure noise, clean data


def from_pure_noise(steps):
    """Straight lines from t = 1, where alpha is 0."""
    t = np.linspace(1.0, 0.0, steps + 1)
    with np.errstate(divide="ignore"):
        logsnr = 2.0 * (np.log1p(-t) - np.log(t))
    return NoiseLevel(t, logsnr, *alpha_sigma(logsnr, "flow"))


@pytest.mark.parametrize("solver", ALL, ids=repr)
def test_a_start_from_pure_noise(solver):
    """Right in the limit where it can be; refused by what works on x / alpha."""
    schedule, grid = rectified_flow(), from_pure_noise(20)
    edm_space = getattr(solver, "space", "flow") == "edm"
    if (
        edm_space
        or getattr(solver, "prediction", "x0") == "eps"
        or isinstance(solver, type(lms()) | type(pndm()))
    ):
        with pytest.raises(ValueError, match=r"x / alpha.*pure noise.*take ddim, ddpm"):
            solver.plan(grid, schedule)
        return
    near = grid.t.copy()
    near[0] = 1.0 - 1e-9
    close = schedule.level(near)
    noises = noises_of(solver, grid, schedule, START.shape)
    x = walk(solver, grid, schedule, MIXTURE, START, noises)
    assert np.all(np.isfinite(x))
    if solver.stochastic and len(solver.plan(close, schedule).now.t) > len(noises):
        # A singlestep solver has one call where its step is infinitely long.
        return
    if solver.stochastic or solver == ddim() or hasattr(solver, "rule"):
        y = walk(solver, close, schedule, MIXTURE, START, noises)
        tolerance = 0.05 if isinstance(solver, type(dpmpp_2m())) else 1e-6
        np.testing.assert_allclose(x[-1], y[-1], atol=tolerance)
    else:
        fine = from_pure_noise(400)
        best = walk(heun(space="flow"), fine, schedule, MIXTURE, START)[-1]
        coarse = isinstance(solver, type(unipc())) and solver.order == 1
        np.testing.assert_allclose(x[-1], best, atol=0.1 if coarse else 0.05)


# --- in a compiled program


def smooth(x, level, condition=None):
    x0 = jnp.tanh(x / (1.0 + level.sigma) + 0.01 * level.logsnr)
    return Prediction(x0, (x - level.alpha * x0) / level.sigma)


@pytest.mark.parametrize(
    "solver", [heun(**CHURN), dpmpp_3m_sde(), unipc(), pndm(), dpmpp_3s(eta=1.0)], ids=repr
)
def test_one_program_that_follows_the_float64_walk(solver):
    """A new seed or grid of the same length compiles nothing; a sample knows no batch."""
    schedule = linear()
    program = jax.jit(lambda plan, keys: sample(smooth, solver, plan, keys, (4,)))
    for grid, seed in ((respaced(), 1), (uniform(), 2)):
        grid = grid(schedule, 10, "zero")
        plan = solver.plan(grid, schedule)
        keys = sample_keys(jax.random.key(seed), jnp.arange(3))
        x = program(plan, keys)

        def normal(k, keys=keys):
            draw = lambda key: jax.random.normal(jax.random.fold_in(key, k), (4,))  # noqa: E731
            return np.asarray(jax.vmap(draw)(keys), np.float64)

        noises = np.stack([normal(k) for k in range(1, len(plan.now.t) + 1)])

        def wide(x, level):
            return Prediction(
                *(np.asarray(f, np.float64) for f in smooth(jnp.asarray(x), level)[:2])
            )

        expected = walk(solver, grid, schedule, wide, grid.sigma[0] * normal(0), noises)[-1]
        np.testing.assert_allclose(x, expected, rtol=2e-5, atol=2e-5)
        order = jnp.array([2, 0, 1])
        np.testing.assert_allclose(program(plan, keys[order]), x[order], rtol=1e-6, atol=1e-6)
    assert program._cache_size() == 1


@pytest.mark.parametrize(("solver", "order"), [(ddim(), 1), (dpmpp_2m(), 2)], ids=repr)
def test_integrate_inverts(solver, order):
    """From an image to its noise and back, in two scans; the error falls with the steps."""
    schedule, x = linear(), jnp.linspace(-0.9, 0.9, 12).reshape(3, 4)
    errors = []
    for steps in (40, 160):
        down = uniform_logsnr()(schedule, steps, "sigma_min")
        up = NoiseLevel(*(field[::-1] for field in down))
        noise = integrate(smooth, solver, solver.plan(up, schedule), x)
        assert float(jnp.max(abs(noise))) > 1.0
        back = integrate(smooth, solver, solver.plan(down, schedule), noise)
        errors.append(float(jnp.max(abs(back - x))))
    assert errors[1] < 4.0 ** (0.3 - order) * errors[0]
    assert errors[1] < 0.05


# --- refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: heun(s_churn=-1.0), "s_churn=-1.0"),
        (lambda: heun(s_min=2.0, s_max=1.0), "s_min=2.0, s_max=1.0"),
        (lambda: heun(space="vp"), "heun: space='vp': must be one of 'edm', 'flow'"),
        (lambda: dpmpp_2m("heun"), "coefficients='heun': must be one of 'midpoint', 'exact'"),
        (lambda: dpmpp_3m_sde(eta=-0.1), "dpmpp_3m_sde: eta=-0.1"),
        (lambda: dpmpp_2s("v"), "prediction='v'"),
        (lambda: dpmpp_3s(eta=2.0), "dpmpp_3s: eta=2.0"),
        (lambda: unipc(order=4), "unipc: order=4 must be one of 1 to 3"),
        (lambda: unipc(variant="bh3"), "variant='bh3'.*did you mean"),
        (lambda: lms(order=5), "lms: order=5"),
        (lambda: deis(order=0), "deis: order=0"),
        (lambda: pndm(start="euler"), "start='euler'"),
    ],
)
def test_impossible_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("solver", ALL, ids=repr)
def test_only_deterministic_solvers_walk_up(solver):
    down = uniform()(linear(), 10, "sigma_min")
    up = NoiseLevel(*(field[::-1] for field in down))
    if solver.stochastic:
        with pytest.raises(ValueError, match=r"no way back up.*ddim\(eta=0.0\)"):
            solver.plan(up, linear())
        with pytest.raises(ValueError, match="take a deterministic solver"):
            integrate(smooth, solver, solver.plan(down, linear()), jnp.zeros((1, 2)))
    else:
        assert np.all(np.isfinite(walk(solver, up, linear(), MIXTURE, START)))
    data = NoiseLevel(*(field[::-1] for field in uniform()(linear(), 10, "zero")))
    with pytest.raises(ValueError, match=r"starts at clean data.*last_step='sigma_min'"):
        ddim().plan(data, linear())


def test_churn_stays_within_a_table():
    """Trap: beyond index 999 the network would be told of 999."""
    grid = uniform()(linear(), 10, "zero")
    with pytest.raises(ValueError, match=r"beyond the noisiest index.*give an s_max below 157"):
        heun(s_churn=8.0).plan(grid, linear())
    plan = heun(**CHURN).plan(grid, linear())
    assert plan.call.t.max() == 999.0
    assert heun(s_churn=8.0).plan(uniform()(edm(), 10, "zero"), edm()).call.sigma[0] > 100.0


def test_a_grid_that_turns_is_refused():
    grid = linear().level(np.array([900.0, 500.0, 600.0, 0.0]))
    with pytest.raises(ValueError, match=r"must fall \(or rise\) at every step"):
        dpmpp_2m().plan(grid, linear())


def test_pndm_needs_equal_steps_in_time():
    with pytest.raises(ValueError, match=r"equal steps in t.*'leading'.*lms or deis"):
        pndm().plan(karras()(linear(), 10, "zero"), linear())
    for grid in (respaced(), trailing()):
        pndm().plan(grid(linear(), 30, "zero"), linear())
