import threading

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from input_pipeline import device_batches, make_loader
from input_pipeline.loader import Loader


@pytest.fixture
def sharding():
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "fsdp"))
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def loader(source, **options):
    defaults = {"image_size": 2, "channels": 1, "batch_size": 16, "seed": 0}
    return make_loader(source, **{**defaults, **options})


def test_batches_are_sharded_and_in_order(numbers, sharding):
    fields = ("image", "label", "caption")
    expected = loader(numbers(50), fields=fields)
    with device_batches(loader(numbers(50), fields=fields), sharding) as batches:
        for k in range(5):
            batch, state = next(batches)
            host = next(expected)
            assert state == expected.state()
            assert state["batches"] == k + 1
            assert batch["image"].sharding.is_equivalent_to(sharding, 4)
            assert batch["label"].sharding.is_equivalent_to(sharding, 1)
            assert batch["image"].shape == (16, 2, 2, 1)
            assert batch["image"].dtype == np.uint8
            for shard in batch["label"].addressable_shards:
                assert shard.data.shape == (2,)
                np.testing.assert_array_equal(shard.data, host["label"][shard.index])
            for field in fields:
                np.testing.assert_array_equal(batch[field], host[field])
            assert isinstance(batch["caption"], np.ndarray)
            assert batches.waited >= 0


def test_position_after_a_stop_is_that_of_the_last_batch_used(numbers, sharding):
    unbroken = loader(numbers(50))
    seen = [next(unbroken)["label"] for _ in range(6)]
    with device_batches(loader(numbers(50)), sharding, depth=2) as batches:
        for _ in range(3):
            _, state = next(batches)  # two more are ready or under way and are lost
    resumed = loader(numbers(50))
    resumed.restore(state)
    with device_batches(resumed, sharding, depth=2) as batches:
        for k in range(3, 6):
            np.testing.assert_array_equal(next(batches)[0]["label"], seen[k])


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_than_depth_batches_are_made_ahead(numbers, sharding, depth):
    class Watched(Loader):
        made = 0
        full = threading.Event()

        def __next__(self):
            self.made += 1
            if self.made == depth:
                self.full.set()
            return super().__next__()

    watched = loader(numbers(50))
    watched.__class__ = Watched
    with device_batches(watched, sharding, depth=depth) as batches:
        assert watched.full.wait(10)
        for _ in range(depth):
            batches._ready.get()  # takes what is ready without making room for more
        assert watched.made == depth
        assert batches._ready.empty()


def test_error_of_the_reading_thread_is_raised_by_next(numbers, sharding):
    class Broken(numbers):
        def example(self, index, fields):
            if index == 40:
                raise OSError("disk on fire")
            return super().example(index, fields)

    batches = device_batches(loader(Broken(50), shuffle=False), sharding)
    for _ in range(2):
        next(batches)
    with pytest.raises(OSError, match="disk on fire"):
        next(batches)
    assert not batches._thread.is_alive()


def test_end_of_the_last_epoch_ends_the_iteration(numbers, sharding):
    with device_batches(loader(numbers(32), epochs=1), sharding) as batches:
        assert [state["batches"] for _, state in batches] == [1, 2]


def test_partial_batch_is_refused(numbers, sharding):
    batches = device_batches(loader(numbers(20), epochs=1), sharding)
    next(batches)
    with pytest.raises(ValueError, match=r"a batch of 4 rows .* full batches of 16"):
        next(batches)


def test_close_ends_the_thread(numbers, sharding):
    batches = device_batches(loader(numbers(50)), sharding)
    next(batches)
    batches.close()
    assert not batches._thread.is_alive()
    with pytest.raises(StopIteration):
        next(batches)


def test_depth_is_checked(numbers, sharding):
    with pytest.raises(ValueError, match=r"data\.prefetch.*at least 1 batch, not 0"):
        device_batches(loader(numbers(50)), sharding, depth=0)
