import dataclasses
import errno
import shutil
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import PartitionSpec as P

from tests.training.test_step import batch, run, setup
from training import checkpoint_layout, checkpoints, mesh
from training.components import ConfigError
from training.exit_codes import TryAgain
from training.mesh import state_sharding, with_sharding

# Orbax leaves coroutines behind where reading or writing fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


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


def abstract_of(current):
    return abstract_on(current, fsdp=4)


@pytest.fixture
def two(tmp_path):
    """Checkpoints of steps 3 and 6, what they hold, and their abstract state."""
    current, train_step, sharding = setup(devices=8, fsdp=4)
    store = checkpoints.Checkpoints(tmp_path / "checkpoints")
    held = {}
    for step in (3, 6):
        current = run(current, train_step, sharding, [batch(i) for i in range(3)])
        held[step] = values(current)
        store.save(step, current, {"batches": step})
    store.close()
    return tmp_path / "checkpoints", held, abstract_of(current)


def largest(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(directory):
    data = largest(directory)
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])


def flip(directory):
    # The middle of the pixels, not of their headers.
    data = largest(directory)
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 4
    data.write_bytes(raw)


def without(name):
    return lambda directory: shutil.rmtree(directory / name)


def cut(name):
    return lambda directory: (directory / name / "metadata").write_text('{"batch')


@pytest.mark.parametrize(
    "damage",
    [truncate, flip, without("params"), without("meta"), cut("data"), cut("meta")],
    ids=["truncated", "a bit flipped", "no params", "no meta", "half data", "half meta"],
)
def test_a_damaged_newest_is_set_aside(two, damage, caplog):
    directory, held, abstract = two
    damage(directory / "6")
    store = checkpoints.Checkpoints(directory)
    state, data, step = store.restore_newest(abstract)
    assert (step, data) == (3, {"batches": 3})
    jax.tree.map(np.testing.assert_array_equal, held[3], values(state))
    assert "checkpoint of step 6 is damaged" in caplog.text
    assert "goes on from that of step 3" in caplog.text
    assert checkpoints.steps(directory) == [3]
    assert (directory / "6.damaged").exists()
    # The run comes by step 6 again.
    store.save(6, state, {"batches": 6})
    store.close()
    assert checkpoints.steps(directory) == [3, 6]
    assert store.restore_newest(abstract)[2] == 6


def test_none_whole_is_an_error_and_nothing_is_moved(two):
    directory, _, abstract = two
    truncate(directory / "3")
    truncate(directory / "6")
    with pytest.raises(ConfigError, match=r"no checkpoint can be read \(step 6: .*; step 3: .*"):
        checkpoints.Checkpoints(directory).restore_newest(abstract)
    assert checkpoints.steps(directory) == [3, 6]


def test_none_at_all(tmp_path):
    current, _, _ = setup()
    assert checkpoints.Checkpoints(tmp_path).restore_newest(abstract_on(current)) is None


def test_storage_that_is_away_is_no_damage(two, monkeypatch):
    directory, _, abstract = two

    def away(*_):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(checkpoint_layout, "read_item", away)
    with pytest.raises(TryAgain, match=r"cannot be read just now .*Stale file handle"):
        checkpoints.Checkpoints(directory).restore_newest(abstract)
    assert checkpoints.steps(directory) == [3, 6]


def test_other_arrays_are_told_by_name(two):
    directory, _, abstract = two
    params = abstract.params | {"b": jax.ShapeDtypeStruct((4,), np.float32)}
    other = dataclasses.replace(abstract, params=params)
    with pytest.raises(ConfigError, match=r"params/b: stored float32\[3\], wanted float32\[4\]"):
        checkpoints.Checkpoints(directory).restore_newest(other)
    assert checkpoints.steps(directory) == [3, 6]


def test_damage_is_told_to_a_reader_of_one_average(two):
    directory, _, abstract = two
    truncate(directory / "6" / "ema.slow")
    with pytest.raises(ConfigError, match=r"6 cannot be read .*sample\.checkpoint, there are 3, 6"):
        checkpoints.restore_params(directory, "slow", abstract.params)
    _, step = checkpoints.restore_params(directory, "params", abstract.params)
    assert step == 6


def failing(monkeypatch, times):
    """Makes the next saves fail as on a full disk, each at its parameters."""
    handler = ocp.StandardCheckpointHandler
    write, left = handler.async_save, [times]

    async def full(self, directory, *args, **kwargs):
        if left[0] and "params" in str(directory):
            left[0] -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return await write(self, directory, *args, **kwargs)

    monkeypatch.setattr(handler, "async_save", full)


def test_a_failed_save_is_told_and_tried_again(tmp_path, monkeypatch, caplog):
    current, train_step, sharding = setup()
    store = checkpoints.Checkpoints(tmp_path, pause=0.1)
    store.save(1, current, {"batches": 1})
    assert not store.due()
    failing(monkeypatch, 1)
    store.save(2, current, {"batches": 2})
    store._wait()
    assert "step 2 could not be written (No space left on device)" in caplog.text
    assert "the newest one is of step 1" in caplog.text
    assert checkpoints.steps(tmp_path) == [1]
    time.sleep(0.1)
    assert store.due()
    current = run(current, train_step, sharding, [batch(0)])
    store.save(3, current, {"batches": 3})
    store.close()
    assert not store.due()
    assert checkpoints.steps(tmp_path) == [1, 3]


def test_the_last_save_is_tried_until_it_succeeds_or_for_long(tmp_path, monkeypatch, caplog):
    current, _, _ = setup()
    store = checkpoints.Checkpoints(tmp_path, pause=0.3, patience=20.0)
    failing(monkeypatch, 3)
    store.save_now(5, current, {"batches": 5})
    assert caplog.text.count("trying again") == 3
    assert checkpoints.steps(tmp_path) == [5]
    store.close()
    store = checkpoints.Checkpoints(tmp_path, pause=0.3, patience=0.5)
    failing(monkeypatch, 100)
    with pytest.raises(TryAgain, match=r"step 6 could not be written .* newest one is of step 5"):
        store.save_now(6, current, {"batches": 6})
    assert checkpoints.steps(tmp_path) == [5]


def test_half_written_checkpoints_are_cleared(saved):
    directory, _, _ = saved
    rest = directory / "5.orbax-checkpoint-tmp"
    (rest / "params").mkdir(parents=True)
    checkpoints.Checkpoints(directory).close()
    assert not rest.exists()
