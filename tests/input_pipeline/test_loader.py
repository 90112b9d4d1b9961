import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from input_pipeline import AUGMENTATIONS, make_loader
from input_pipeline.images import BadImageError
from input_pipeline.sources.digits import digits
from input_pipeline.sources.folder import folder


def loader(source, **options):
    defaults = {"image_size": 2, "channels": 1, "batch_size": 4, "seed": 0}
    return make_loader(source, **{**defaults, "process_index": 0, "process_count": 1, **options})


def take(batches, count):
    return [next(batches) for _ in range(count)]


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for field in one:
            np.testing.assert_array_equal(one[field], other[field])


def labels(batches):
    return np.concatenate([batch["label"] for batch in batches])


def test_batch_has_the_fields_asked_for(numbers):
    batch = next(loader(numbers(9), shuffle=False, fields=("image", "caption", "label")))
    assert batch.keys() == {"image", "label", "caption"}
    assert batch["image"].shape == (4, 2, 2, 1)
    assert batch["image"].dtype == np.uint8
    assert batch["label"].dtype == np.int32
    assert batch["label"].tolist() == [0, 1, 2, 3]
    assert batch["caption"].tolist() == [f"number {i}" for i in range(4)]
    assert next(loader(numbers(9))).keys() == {"image", "label"}


def test_stream_is_what_it_always_was():
    """A change of this digest means that runs of earlier versions cannot be resumed or repeated."""
    fields = ("caption", "image", "label")
    options = {"image_size": 8, "batch_size": 128, "seed": 2**33 + 5, "fields": fields}
    batches = loader(digits(), augmentations=(AUGMENTATIONS["flip"](),), **options)
    batches.restore({**batches.state(), "batches": 10**9})
    content = hashlib.sha256()
    for batch in take(batches, 6):
        for field in fields:
            content.update(f"{field}{batch[field].dtype}".encode() + batch[field].tobytes())
    assert content.hexdigest()[:16] == "7890331b48b655a0"


def test_examples_of_a_batch_are_read_at_once(numbers):
    class Together(numbers):
        calls = ()

        def examples(self, indices, fields):
            type(self).calls += (list(indices),)
            return super().examples(indices, fields)

    batch = next(loader(Together(10), batch_size=8))
    assert batch["label"].tolist() in Together.calls  # threads read ahead


def test_without_images_none_is_decoded(photos):
    for path in (photos / "train").rglob("*.png"):
        path.write_bytes(b"")
    batch = next(loader(folder(str(photos), split="train"), fields=("label", "caption")))
    assert batch.keys() == {"label", "caption"}
    assert len(batch["label"]) == 4


@pytest.mark.parametrize("on_bad_image", ["raise", "skip"])
def test_a_source_may_find_its_images_bad_itself(numbers, on_bad_image):
    class Bad(numbers):
        def example(self, index, fields):
            if index == 2:
                raise BadImageError("is torn")
            return super().example(index, fields)

    batches = loader(Bad(4), shuffle=False, on_bad_image=on_bad_image)
    if on_bad_image == "raise":
        with pytest.raises(BadImageError, match=r"example 2 of numbers\(4\): is torn"):
            next(batches)
    else:
        assert next(batches)["label"].tolist() == [0, 1, 3, 3]
        assert batches.skipped == 1


@pytest.mark.parametrize("processes", [2, 4])
def test_stream_is_the_same_for_any_number_of_processes(numbers, processes):
    options = {"batch_size": 8, "augmentations": (AUGMENTATIONS["flip"](),)}
    whole = take(loader(numbers(13), **options), 5)
    shares = [
        take(loader(numbers(13), process_index=p, process_count=processes, **options), 5)
        for p in range(processes)
    ]
    joined = [
        {field: np.concatenate([part[field] for part in parts]) for field in parts[0]}
        for parts in zip(*shares, strict=True)
    ]
    assert_same(joined, whole)


def test_each_epoch_has_every_example_once_in_another_order(numbers):
    stream = labels(take(loader(numbers(10)), 10)).reshape(4, 10)  # 4 epochs over batch borders
    assert all(sorted(epoch) == list(range(10)) for epoch in stream)
    assert len({tuple(epoch) for epoch in stream}) == 4


def test_seeds_give_unrelated_orders(numbers):
    first, second = (labels(take(loader(numbers(20), seed=s), 15)).reshape(3, 20) for s in (0, 1))
    assert not {tuple(epoch) for epoch in first} & {tuple(epoch) for epoch in second}


def test_unshuffled_stream_is_in_the_sources_order(numbers):
    stream = labels(take(loader(numbers(6), shuffle=False), 3))
    assert stream.tolist() == [*range(6), *range(6)]


@pytest.mark.parametrize(
    ("count", "batch", "start"),
    [(1, 1, 0), (1, 7, 12), (5, 7, 1), (20, 1, 7), (20, 7, 12), (7, 7, 3)],
)
def test_restored_at_k_equals_skipping_k(count, batch, start):
    source = digits()
    source = type(source)("few", source.images[:count], source.labels[:count])
    options = {"image_size": 8, "batch_size": batch, "seed": 2**32 + start}
    options["augmentations"] = (AUGMENTATIONS["flip"](),)
    unbroken = loader(source, **options)
    take(unbroken, start)
    resumed = loader(source, **options)
    resumed.restore(json.loads(json.dumps(unbroken.state())))
    assert resumed.state() == unbroken.state()
    assert_same(take(resumed, 3), take(unbroken, 3))
    unbroken.close()
    resumed.close()


def test_start_far_into_the_stream_reads_nothing_before(numbers):
    class Counting(numbers):
        reads = 0

        def example(self, index, fields):
            type(self).reads += 1
            return super().example(index, fields)

    batches = loader(Counting(10))
    batches.restore({**batches.state(), "batches": 10**12})
    assert next(batches)["label"].shape == (4,)
    batches.close()
    assert Counting.reads < 100


def test_state_is_the_place_of_what_was_returned(numbers):
    batches = loader(numbers(50))
    for k in range(3):
        assert batches.state()["batches"] == k
        next(batches)
        time.sleep(0.02)  # the threads read ahead


def test_augmentation_differs_by_position_and_repeats_at_resume():
    options = {"image_size": 8, "batch_size": 64, "shuffle": False}
    plain = next(loader(digits(), **options))["image"]
    options["augmentations"] = (AUGMENTATIONS["flip"](),)
    first, second = next(loader(digits(), **options)), next(loader(digits(), **options))
    assert_same([first], [second])
    flipped = (first["image"] != plain).any((1, 2, 3))
    assert 15 < flipped.sum() < 49
    np.testing.assert_array_equal(first["image"][flipped], plain[flipped, :, ::-1])
    other = next(loader(digits(), **{**options, "seed": 1}))
    assert (other["image"] != first["image"]).any()


def test_workers_give_the_same_stream_and_resume_in_it(photos):
    options = {"image_size": 6, "channels": 3, "fields": ("image", "label", "caption")}
    options["augmentations"] = (AUGMENTATIONS["flip"](),)
    source = folder(str(photos), split="train")
    expected = take(loader(source, **options), 6)
    for workers in (1, 2):
        batches = loader(source, workers=workers, **options)
        batches.restore({**batches.state(), "batches": 2})
        assert_same(take(batches, 4), expected[2:])
        assert batches.state()["batches"] == 6
        batches.close()


def test_one_epoch_ends_with_the_rows_that_are_left(numbers):
    batches = list(loader(numbers(10), epochs=1, shuffle=False))
    assert [len(batch["label"]) for batch in batches] == [4, 4, 2]
    assert labels(batches).tolist() == list(range(10))
    shares = [
        list(loader(numbers(10), epochs=1, shuffle=False, process_index=p, process_count=4))
        for p in range(4)
    ]
    assert [[len(batch["image"]) for batch in share] for share in shares] == [
        [1, 1, 1],
        [1, 1, 1],
        [1, 1, 0],
        [1, 1, 0],
    ]
    assert shares[3][-1]["image"].shape == (0, 2, 2, 1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed = 0 .* 1"),
        ({"batch_size": 8}, "batch_size = 4 .* 8"),
        ({"shuffle": False}, "shuffle = True .* False"),
        ({"count": 11}, r"source = 'numbers\(10\)' .* 'numbers\(11\)'"),
    ],
)
def test_state_of_another_stream_is_refused(numbers, change, named):
    state = loader(numbers(10)).state()
    change = dict(change)
    other = loader(numbers(change.pop("count", 10)), **change)
    with pytest.raises(ValueError, match=named):
        other.restore(state)


def test_arguments_are_checked(numbers):
    with pytest.raises(ValueError, match=r"batch_size: 5 .* over 2 processes"):
        loader(numbers(4), batch_size=5, process_count=2)
    with pytest.raises(ValueError, match="channels: 2 is none of 1, 3"):
        loader(numbers(4), channels=2)
    with pytest.raises(ValueError, match="on_bad_image: 'ignore' is none of 'raise', 'skip'"):
        loader(numbers(4), on_bad_image="ignore")
    with pytest.raises(ValueError, match=r"numbers\(4\) has no 'depth'; it has image, label"):
        loader(numbers(4), fields=("image", "depth"))
    with pytest.raises(ValueError, match=r"numbers\(0\) is empty"):
        loader(numbers(0))


def test_bad_image_stops_with_its_name(photos):
    bad = photos / "train" / "cat" / "03.png"
    bad.write_bytes(bad.read_bytes()[:40])
    source = folder(str(photos), split="train")
    for workers in (0, 1):
        batches = loader(source, channels=3, workers=workers)
        with pytest.raises(BadImageError, match=r"cat/03\.png: .*on_bad_image='skip'"):
            take(batches, 3)
        batches.close()


def test_skipped_images_are_replaced_counted_and_logged_once(photos, caplog):
    names = ("cat/03.png", "cat/04.png")
    for name in names:
        (photos / "train" / name).write_bytes(b"")
    source = folder(str(photos), split="train")
    options = {"channels": 3, "on_bad_image": "skip", "shuffle": False, "batch_size": 5}
    streams, counts = [], []
    for workers in (0, 1):
        caplog.clear()
        batches = loader(source, workers=workers, **options)
        streams.append([])
        counts.append([])
        for _ in range(4):
            streams[-1].append(next(batches))
            counts[-1].append(batches.skipped)
        batches.close()
        warnings = [record.getMessage() for record in caplog.records]
        assert len(warnings) == 2
        assert all(any(name in text for text in warnings) for name in names)
    assert_same(*streams)
    # Of each epoch 03 is followed by two bad ones (itself, 04), 04 by itself.
    assert counts == [[3, 3, 6, 6]] * 2
    good = next(
        loader(
            folder(str(photos), split="train"),
            channels=3,
            shuffle=False,
            seed=0,
            batch_size=6,
            on_bad_image="skip",
        )
    )
    np.testing.assert_array_equal(good["image"][3], good["image"][5])
    assert good["label"].tolist() == [0, 0, 0, 1, 1, 1]
    assert good.keys() == {"image", "label"}


def test_nothing_but_bad_images_is_an_error(photos):
    for path in (photos / "test").rglob("*.png"):
        path.write_bytes(b"")
    batches = loader(folder(str(photos), split="test"), channels=3, on_bad_image="skip")
    with pytest.raises(BadImageError, match="not one image of folder"):
        next(batches)


PROGRAM = """
import time
from input_pipeline import make_loader
from input_pipeline.sources.digits import digits

if __name__ == "__main__":
    batches = make_loader(digits(), image_size=8, channels=1, batch_size=4, seed=0, workers=1)
    next(batches)
    print("ready", flush=True)
    time.sleep(60)
"""


def test_workers_end_when_the_program_is_killed(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    root = os.fspath(pathlib.Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, program],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGKILL)
    # The worker has the pipe too: it ends only when both have.
    process.communicate(timeout=20)
