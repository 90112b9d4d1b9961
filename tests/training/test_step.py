import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion.schedules import edm
from diffusion.time_samplers import low_discrepancy
from tests.training.toy import ToyTask
from training import ema, mesh, state, step


def setup(
    task=None,
    accumulate=1,
    fsdp=1,
    devices=1,
    log_every=4,
    max_bad_steps=3,
    decay=0.9,
    optimizer=None,
    sam_rho=0.0,
):
    task = task or ToyTask()
    optimizer = optimizer or optax.adam(1e-2)
    rates = {"slow": ema.constant(decay), "none": ema.constant(0.0)}
    device_mesh = mesh.make_mesh(fsdp=fsdp, devices=jax.devices()[:devices])
    spec = task.batch_spec(8)
    init = functools.partial(
        state.initial_state, task, optimizer, tuple(rates), step.metric_names(task, spec), 0
    )
    _, make = state.sharded_init(init, device_mesh)
    train_step = step.make_train_step(
        task,
        optimizer,
        optax.constant_schedule(1e-2),
        rates,
        device_mesh,
        accumulate=accumulate,
        log_every=log_every,
        max_bad_steps=max_bad_steps,
        sam_rho=sam_rho,
    )
    return make(), jax.jit(train_step, donate_argnums=0), mesh.batch_sharding(device_mesh)


def batch(seed, bad=False):
    x = np.random.default_rng(seed).normal(size=(8, 4, 4, 1)).astype(np.float32)
    return {"image": np.full_like(x, np.nan) if bad else x}


def copy(tree):
    return jax.tree.map(np.asarray, tree)


def run(current, train_step, sharding, batches):
    for b in batches:
        current = train_step(current, jax.device_put(b, sharding))
    return current


def test_step_is_adams_and_metrics_are_sums_of_the_window():
    current, train_step, sharding = setup(ToyTask(noise=0.0))
    params = jax.tree.map(jnp.asarray, copy(current.params))
    optimizer = optax.adam(1e-2)
    moments = optimizer.init(params)
    losses = []

    def exact_loss(p, b):
        return ToyTask(0.0).loss(p, {}, b, jax.random.key(0))[0]

    for i in range(6):
        b = batch(i)
        loss, grads = jax.value_and_grad(
            lambda p, b=b: ToyTask(0.0).loss(p, {}, b, jax.random.key(0))[0]
        )(params)
        updates, moments = optimizer.update(grads, moments)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    current = run(current, train_step, sharding, [batch(i) for i in range(6)])
    np.testing.assert_allclose(current.params["w"], params["w"], rtol=1e-6, atol=1e-7)
    # log_every = 4: a new window began after step 4.
    assert int(current.window) == 2
    np.testing.assert_allclose(current.metrics["loss"], sum(losses[4:]), rtol=1e-5)
    np.testing.assert_allclose(current.metrics["learning_rate"], 2e-2, rtol=1e-6, atol=1e-7)


class Strata(ToyTask):
    """Counts the eighths of time that its noise levels fall into."""

    def loss(self, params, state, batch, rng):
        t = low_discrepancy().draw(rng, len(batch["image"]), edm(), {}).level.t
        counts = jnp.zeros(8).at[jnp.floor(8 * t).astype(int)].add(1.0)
        return 0.0 * params["w"].mean(), ({f"part{k}": counts[k] for k in range(8)}, state)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_levels_are_spread_over_devices_and_microbatches(accumulate):
    current, train_step, sharding = setup(Strata(), accumulate=accumulate, devices=2)
    current = train_step(current, jax.device_put(batch(0), sharding))
    found = [float(current.metrics[f"part{k}"]) for k in range(8)]
    assert found == [1 / accumulate] * 8, "each is a mean over microbatches"


def test_ema_starts_at_the_initial_parameters():
    current, train_step, sharding = setup(decay=0.9)
    start = copy(current.params["w"])
    current = run(current, train_step, sharding, [batch(0)])
    now = np.asarray(current.params["w"])
    np.testing.assert_allclose(current.ema["slow"]["w"], 0.9 * start + 0.1 * now, rtol=1e-5)
    np.testing.assert_allclose(current.ema["none"]["w"], now, rtol=1e-6, atol=1e-7)


def test_accumulation_has_the_mean_gradient_of_the_whole_batch():
    results = []
    for accumulate in (1, 4):
        current, train_step, sharding = setup(ToyTask(noise=0.0), accumulate=accumulate, devices=2)
        results.append(run(current, train_step, sharding, [batch(i) for i in range(3)]))
    np.testing.assert_allclose(results[0].params["w"], results[1].params["w"], rtol=1e-5)
    np.testing.assert_allclose(results[0].metrics["loss"], results[1].metrics["loss"], rtol=1e-5)


def test_fsdp_gives_the_values_of_one_device():
    one = run(*setup(devices=1), [batch(i) for i in range(3)])
    many = run(*setup(devices=8, fsdp=4), [batch(i) for i in range(3)])
    assert many.params["w"].sharding.spec[0] == "fsdp"
    np.testing.assert_allclose(one.params["w"], many.params["w"], rtol=1e-5, atol=1e-7)


def test_bad_step_changes_nothing_but_the_counters():
    current, train_step, sharding = setup()
    current = run(current, train_step, sharding, [batch(0)])
    before = copy((current.params, current.opt_state, current.ema, current.metrics))
    current = run(current, train_step, sharding, [batch(1, bad=True)])
    jax.tree.map(
        np.testing.assert_array_equal,
        before,
        copy((current.params, current.opt_state, current.ema, current.metrics)),
    )
    assert (int(current.step), int(current.bad_steps), int(current.bad_streak)) == (2, 1, 1)
    assert int(current.bad_since) == 2
    current = run(current, train_step, sharding, [batch(2)])
    assert (int(current.bad_steps), int(current.bad_streak)) == (1, 0)
    assert np.isfinite(copy(current.params["w"])).all()


def test_after_enough_bad_steps_in_a_row_nothing_moves_any_more():
    current, train_step, sharding = setup(max_bad_steps=2)
    current = run(current, train_step, sharding, [batch(0), *[batch(1, bad=True)] * 2])
    before = copy(current.params)
    current = run(current, train_step, sharding, [batch(3)])
    jax.tree.map(np.testing.assert_array_equal, before, copy(current.params))
    assert (int(current.bad_streak), int(current.bad_since)) == (2, 2)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_ema_decay_out_of_range(decay):
    with pytest.raises(ValueError, match="decay"):
        ema.constant(decay)
