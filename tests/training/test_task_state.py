"""What a task keeps from step to step goes where the rest of the train state goes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.training.test_checkpoints import abstract_on, assert_same
from tests.training.test_step import batch, run, setup
from tests.training.toy import ToyTask
from training import checkpoints


class MemoryTask(ToyTask):
    """Remembers the sums of its last four batches and scales its loss by how many it has seen."""

    def init_state(self):
        return {"sums": jnp.zeros(4), "seen": jnp.int32(0)}

    def loss(self, params, state, batch, rng):
        value, (metrics, _) = super().loss(params, {}, batch, rng)
        total = jnp.nan_to_num(batch["image"]).sum()
        new = {
            "sums": jnp.roll(state["sums"], 1).at[0].set(total),
            "seen": state["seen"] + 1,
        }
        return value * (1 + state["seen"]), (metrics, new)


def test_each_microbatch_sees_the_state_that_the_one_before_left():
    current, train_step, sharding = setup(MemoryTask(0.0), accumulate=4)
    current = run(current, train_step, sharding, [batch(0)])
    assert int(current.task["seen"]) == 4
    # Microbatch k are rows k, k + 4: each device keeps the rows that it has.
    rows = batch(0)["image"].reshape(2, 4, -1).sum(axis=(0, 2))
    np.testing.assert_allclose(current.task["sums"], rows[::-1], rtol=1e-4, atol=1e-5)
    # The losses of the four are scaled by 1, 2, 3 and 4.
    key = jax.random.key(0)
    plain, _, _ = setup(ToyTask(0.0))
    losses = [
        float(ToyTask(0.0).loss(plain.params, {}, {"image": jnp.asarray(micro)}, key)[0])
        for micro in batch(0)["image"].reshape(2, 4, 4, 4, 1).swapaxes(0, 1)
    ]
    expected = np.mean(np.array(losses) * [1, 2, 3, 4])
    np.testing.assert_allclose(current.metrics["loss"], expected, rtol=1e-5)


def test_a_bad_step_leaves_no_memory():
    current, train_step, sharding = setup(MemoryTask(0.0))
    current = run(current, train_step, sharding, [batch(0)])
    before = jax.device_get(current.task)
    current = run(current, train_step, sharding, [batch(1, bad=True)])
    assert int(current.bad_steps) == 1
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(current.task))
    assert int(run(current, train_step, sharding, [batch(2)]).task["seen"]) == 2


def test_the_second_gradient_of_sam_leaves_no_memory():
    current, train_step, sharding = setup(
        MemoryTask(0.0), optimizer=optax.sgd(0.01), sam_rho=0.1, accumulate=2
    )
    current = run(current, train_step, sharding, [batch(0)])
    assert int(current.task["seen"]) == 2


@pytest.mark.parametrize("task", [MemoryTask, ToyTask])
def test_a_stopped_run_goes_on_with_its_memory(task, tmp_path):
    parts = setup(task(), accumulate=2, devices=8, fsdp=4)
    current = run(*parts, [batch(i) for i in range(3)])
    store = checkpoints.Checkpoints(tmp_path)
    store.save(3, current, {"batches": 3})
    store.close()
    unbroken = run(current, *parts[1:], [batch(i) for i in range(3, 6)])

    restored, _ = checkpoints.Checkpoints(tmp_path).restore(abstract_on(unbroken, fsdp=4), 3)
    assert restored.task.keys() == task().init_state().keys()
    assert_same(run(restored, *parts[1:], [batch(i) for i in range(3, 6)]), unbroken)


def test_a_checkpoint_has_the_field_only_where_a_task_keeps_something(tmp_path):
    """So checkpoints from before there were tasks that do are read as they were written."""
    for task, there in ((ToyTask, False), (MemoryTask, True)):
        current, _, _ = setup(task())
        store = checkpoints.Checkpoints(tmp_path / task.__name__)
        store.save(0, current, {"batches": 0})
        store.close()
        metadata = (tmp_path / task.__name__ / "0" / "training" / "_METADATA").read_text()
        assert ("'task'" in metadata) == there
        assert "'opt_state'" in metadata
