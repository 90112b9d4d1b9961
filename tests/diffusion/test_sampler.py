import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from diffusion import PARAMETERIZATIONS, Prediction, clip, denoiser, sample, sample_keys
from diffusion.clipping import static
from diffusion.grids import respaced, uniform
from diffusion.schedules import edm, linear, rectified_flow
from diffusion.solvers import ddim, ddpm

SHAPE = (4, 4, 2)
SEED = jax.random.key(7)


def toy(schedule=None, kind="eps"):
    def network(x, time, condition):
        label = 0.0 if condition is None else condition["label"][:, None, None, None]
        return jnp.tanh(x + 1e-3 * time[:, None, None, None] + label)

    return clip(denoiser(network, schedule or linear(), PARAMETERIZATIONS[kind]()), static())


def draw(indices, solver=None, grid=None, condition=None, denoise=None):
    solver = solver or ddpm("fixed_large")
    plan = solver.plan(grid or respaced()(linear(), 10, "zero"), linear())
    keys = sample_keys(SEED, jnp.asarray(indices))
    return sample(denoise or toy(), solver, plan, keys, SHAPE, condition)


def test_is_the_documented_recipe():
    """fold_in(seed, i); then fold_in(., 0) for the start and fold_in(., k) for step k."""
    solver, grid = ddpm("fixed_large"), respaced()(linear(), 5, "zero")
    plan = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), solver.plan(grid, linear()))
    key = jax.random.fold_in(SEED, 3)
    x = jnp.float32(grid.sigma[0]) * jax.random.normal(jax.random.fold_in(key, 0), SHAPE)[None]
    for k in range(5):
        row = jax.tree.map(lambda leaf, k=k: leaf[k], plan)
        noise = jax.random.normal(jax.random.fold_in(key, k + 1), SHAPE)[None]
        x = solver.step(x, lambda x, level: toy()(x, level, None), row, noise)
    np.testing.assert_allclose(draw([3], grid=grid), x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", [ddpm("fixed_large"), ddim(0.5)])
def test_a_sample_does_not_depend_on_its_batch(solver):
    """Trap: one key for the whole batch would make image i a function of the batch size."""
    together = draw([0, 1, 2, 3, 4, 5], solver)
    for indices in ([4], [5, 0], [3, 2, 1]):
        np.testing.assert_allclose(
            draw(indices, solver), together[np.array(indices)], rtol=1e-6, atol=1e-6
        )
    assert len(np.unique(together.reshape(6, -1), axis=0)) == 6


def test_nor_on_the_number_of_devices():
    indices = jnp.arange(8)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    solver = ddpm("fixed_large")
    plan = solver.plan(respaced()(linear(), 4, "zero"), linear())
    program = jax.jit(lambda plan, keys: sample(toy(), solver, plan, keys, SHAPE))
    one = program(plan, sample_keys(SEED, indices))
    many = program(plan, jax.device_put(sample_keys(SEED, indices), sharding))
    assert many.sharding.is_equivalent_to(sharding, many.ndim)
    np.testing.assert_allclose(one, many, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "deviation"), [(linear(), 1.0), (edm(), 80.0), (rectified_flow(), 1.0)]
)
def test_starts_from_noise_of_the_first_level(schedule, deviation):
    started = []

    def denoise(x, level, condition):
        jax.debug.callback(lambda x: started.append(np.asarray(x)), x)
        return toy(schedule, "edm")(x, level, condition)

    draw(
        jnp.arange(200), ddim(), uniform()(schedule, 1, "zero"), denoise=denoise
    ).block_until_ready()
    jax.effects_barrier()
    assert started[0].std() == pytest.approx(deviation, rel=0.03)


def test_a_new_plan_or_seed_of_the_same_length_recompiles_nothing():
    solver = ddim()
    program = jax.jit(lambda plan, keys: sample(toy(), solver, plan, keys, SHAPE))
    for grid, last_step, first in ((respaced(), "zero", 0), (uniform(), "sigma_min", 2)):
        plan = solver.plan(grid(linear(), 6, last_step), linear())
        program(plan, sample_keys(SEED, first + jnp.arange(2)))
    assert program._cache_size() == 1


def test_condition_reaches_the_network():
    labels = {"label": jnp.array([0.0, 5.0])}
    same, other = draw([0, 1]), draw([0, 1], condition=labels)
    np.testing.assert_allclose(same[0], other[0], rtol=1e-6, atol=1e-6)
    assert jnp.any(abs(same[1] - other[1]) > 1e-2)


def test_output_is_float32_of_the_asked_shape():
    x = draw([0, 1, 2])
    assert x.shape == (3, *SHAPE)
    assert x.dtype == jnp.float32
    # The last step goes to the clipped prediction of x0 itself.
    assert jnp.max(abs(x)) <= 1.0


@pytest.mark.parametrize("schedule", [linear(), rectified_flow(), edm()])
def test_float32_scan_follows_the_float64_trajectory(schedule):
    """Gaussian data through 250 steps of each scaling, within 1e-5."""

    def denoise(x, level, condition=None):
        total = 0.25 * level.alpha**2 + level.sigma**2
        return Prediction(0.25 * level.alpha / total * x, level.sigma / total * x)

    plan = ddim().plan(uniform()(schedule, 250, "zero"), schedule)
    keys = sample_keys(SEED, jnp.arange(2))
    single = sample(denoise, ddim(), plan, keys, SHAPE)
    x = np.stack([jax.random.normal(jax.random.fold_in(key, 0), SHAPE) for key in keys])
    x = plan.now.sigma[0] * x.astype(np.float64)
    for k in range(250):
        row = jax.tree.map(lambda leaf, k=k: leaf[k], plan)
        x = ddim().step(x, denoise, row, np.zeros(x.shape))
    np.testing.assert_allclose(single, x, rtol=1e-5, atol=1e-5)
