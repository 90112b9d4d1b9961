import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.training.test_step import batch, run, setup
from training import checkpoints, mesh
from training.components import ConfigError
from training.mesh import state_sharding, with_sharding


def values(state):
    """All leaves as numpy, keys as their data."""

    def value(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.array(leaf)

    return jax.tree.map(value, state)


def abstract_on(state, **axes):
    device_mesh = mesh.make_mesh(**axes)
    abstract = jax.eval_shape(lambda s: s, state)
    return with_sharding(abstract, state_sharding(abstract, device_mesh))


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, values(a), values(b))


@pytest.fixture
def saved(tmp_path):
    """A run of 3 steps on 8 devices, saved, which then went on at once."""
    current, train_step, sharding = setup(devices=8, fsdp=4)
    current = run(current, train_step, sharding, [batch(i) for i in range(3)])
    at_save = values(current)
    store = checkpoints.Checkpoints(tmp_path / "checkpoints")
    store.save(3, current, {"batches": 3})
    # The buffers that are being written are donated to the steps that follow.
    for _ in range(5):
        current = run(current, train_step, sharding, [batch(9)])
    store.close()
    return tmp_path / "checkpoints", at_save, current


def test_what_is_saved_is_the_state_at_the_call(saved):
    directory, at_save, current = saved
    restored, data = checkpoints.Checkpoints(directory).restore(abstract_on(current, fsdp=4), 3)
    jax.tree.map(np.testing.assert_array_equal, at_save, values(restored))
    assert data == {"batches": 3}


@pytest.mark.parametrize("count", [4, 1])
def test_restores_on_fewer_devices(saved, count):
    directory, at_save, current = saved
    target = abstract_on(current, fsdp=-1, data=1, devices=jax.devices()[:count])
    restored, _ = checkpoints.Checkpoints(directory).restore(target, 3)
    jax.tree.map(np.testing.assert_array_equal, at_save, values(restored))
    assert restored.params["w"].sharding.num_devices == count
    assert restored.params["w"].sharding.spec == (P("fsdp") if count > 1 else P())


def test_restored_state_takes_the_step_of_an_unbroken_run(saved):
    directory, _, current = saved
    _, train_step, sharding = setup(devices=8, fsdp=4)
    restored, _ = checkpoints.Checkpoints(directory).restore(abstract_on(current, fsdp=4), 3)
    assert_same(run(restored, train_step, sharding, [batch(9)] * 5), current)


def test_one_average_is_read_alone(saved):
    directory, at_save, current = saved
    target = abstract_on(current.params, fsdp=1)
    params, step = checkpoints.restore_params(directory, "slow", target)
    assert step == 3
    jax.tree.map(np.testing.assert_array_equal, at_save.ema["slow"], values(params))
    params, _ = checkpoints.restore_params(directory, "params", target, step=3)
    jax.tree.map(np.testing.assert_array_equal, at_save.params, values(params))


def test_errors_say_what_there_is(saved, tmp_path):
    directory, _, current = saved
    target = abstract_on(current.params)
    with pytest.raises(ConfigError, match=r"config\.sample\.ema: 'fast'.*none, params, slow"):
        checkpoints.restore_params(directory, "fast", target)
    with pytest.raises(ConfigError, match=r"config\.sample\.checkpoint: .*step 7.*there are 3"):
        checkpoints.restore_params(directory, "slow", target, step=7)
    with pytest.raises(ConfigError, match="no complete checkpoint"):
        checkpoints.restore_params(tmp_path / "nowhere", "slow", target)


def test_keeps_the_newest_and_the_periodic(tmp_path):
    current, _, _ = setup()
    store = checkpoints.Checkpoints(tmp_path, keep=2, keep_every=4)
    for step in range(2, 13, 2):
        store.save(step, current, {"batches": step})
    store.close()
    assert checkpoints.steps(tmp_path) == [4, 8, 10, 12]


def test_unfinished_checkpoint_is_not_taken(saved):
    directory, _, _ = saved
    (directory / "5.orbax-checkpoint-tmp").mkdir()
    assert checkpoints.steps(directory) == [3]
    assert checkpoints.Checkpoints(directory).latest() == 3
