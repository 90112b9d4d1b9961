import json
import os
import pickle

import numpy as np
import pytest

from input_pipeline import make_loader
from input_pipeline.convert import convert
from input_pipeline.sources.base import Source
from input_pipeline.sources.records import Field, records


class Mixed(Source):
    """Every kind of field."""

    name = "mixed"
    fields = ("image", "label", "caption", "weight", "good", "latent", "counts")
    class_names = ("even", "odd")
    fingerprint = "mixed-1"

    def __len__(self):
        return 23

    def example(self, index, fields):
        rng = np.random.default_rng(index)
        return {
            "image": rng.integers(0, 256, (4, 4, 3), dtype=np.uint8),
            "label": np.int64(index % 2),
            "caption": f"näher {index} 图" * (index % 3),
            "weight": index / 7,
            "good": bool(index % 3),
            "latent": rng.standard_normal((2, 3)).astype(np.float16),
            "counts": np.asfortranarray(rng.integers(0, 9, (3, 2)).astype(">i4")),
        }


@pytest.fixture
def converted(tmp_path):
    convert(Mixed(), tmp_path, image_size=4, channels=3, shards=3)
    return tmp_path


def assert_equal(examples, expected):
    assert len(examples) == len(expected)
    for example, wanted in zip(examples, expected, strict=True):
        assert example.keys() == wanted.keys()
        for field, value in wanted.items():
            np.testing.assert_array_equal(example[field], value)


def test_examples_are_those_of_the_source(converted):
    source = Mixed()
    stored = records(str(converted))
    assert (len(stored), stored.fields, stored.class_names) == (23, Mixed.fields, ("even", "odd"))
    assert_equal([stored[i] for i in range(23)], [source[i] for i in range(23)])
    example = stored[5]
    assert [type(example[field]) for field in ("label", "weight", "good", "caption")] == [
        int, float, bool, str
    ]  # fmt: skip
    assert example["latent"].dtype == np.float16
    assert example["counts"].dtype == np.int32


@pytest.mark.parametrize("count", [1, 15, 16, 64])
def test_many_at_once_in_any_order(converted, count):
    stored = records(str(converted))
    indices = np.random.default_rng(count).integers(0, 23, count).tolist()
    fields = ("caption", "image")
    expected = [{f: Mixed().example(i, fields)[f] for f in fields} for i in indices]
    assert_equal(stored.examples(indices, fields), expected)
    assert_equal(pickle.loads(pickle.dumps(stored)).examples(indices, fields), expected)


def test_batches_are_those_of_the_source(converted):
    def batches(source):
        loader = make_loader(
            source,
            image_size=4,
            channels=3,
            batch_size=9,
            seed=1,
            fields=("image", "label", "caption", "latent"),
            process_index=0,
            process_count=1,
        )
        return [next(loader) for _ in range(7)]

    stored, expected = batches(records(str(converted))), batches(Mixed())
    assert_equal(stored, expected)
    assert stored[0]["latent"].shape == (9, 2, 3)
    for field, values in expected[0].items():
        assert stored[0][field].dtype == values.dtype


def test_fingerprint_follows_the_examples_and_not_the_place(converted, tmp_path):
    first = records(str(converted)).fingerprint
    os.rename(tmp_path / "train", tmp_path / "valid")
    assert records(str(tmp_path), split="valid").fingerprint == first
    convert(Mixed(), tmp_path, image_size=2, channels=3, shards=3)
    assert records(str(tmp_path)).fingerprint != first


def shard(path, number=1):
    return path / "train" / f"0000{number}-of-00003.array_record"


def change_info(path, **changes):
    file = path / "train" / "info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_missing_and_unfinished_directories(converted):
    with pytest.raises(FileNotFoundError, match=r"no .*test/info\.json; .* has train; write it by"):
        records(str(converted), split="test")
    (converted / "test.partial").mkdir()
    with pytest.raises(FileNotFoundError, match="was not finished; run it again"):
        records(str(converted), split="test")


def test_damaged_files_are_found_before_training(converted):
    file = shard(converted)
    content = file.read_bytes()
    file.write_bytes(content[:-1000])
    with pytest.raises(ValueError, match=rf"{file} has {len(content) - 1000} bytes and should"):
        records(str(converted))
    file.write_bytes(bytes(len(content)))
    with pytest.raises(ValueError, match=rf"{file} has 0 examples and should have 8"):
        records(str(converted))
    file.write_bytes(shard(converted, 0).read_bytes())
    with pytest.raises(ValueError, match=rf"{file} has 7 examples and should have 8"):
        records(str(converted))
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"{file} is missing"):
        records(str(converted))


def test_damage_inside_of_a_file_is_named_when_it_is_read(converted):
    file = shard(converted)
    content = bytearray(file.read_bytes())
    content[300:1200] = bytes(900)
    file.write_bytes(content)
    stored = records(str(converted))
    for indices in ([*range(7, 15)], [*range(7, 15)] * 3):
        with pytest.raises(ValueError, match=f"{file} is damaged"):
            stored.examples(indices, ("image",))


def test_info_of_another_kind_is_refused(converted):
    change_info(converted, count=24)
    with pytest.raises(ValueError, match=r"info\.json tells of 24 examples, and of 23 in its"):
        records(str(converted))
    change_info(converted, version=2)
    with pytest.raises(ValueError, match=r"version 2; this program reads .* version 1; convert"):
        records(str(converted))
    (converted / "train" / "info.json").write_text('{"format": ')
    with pytest.raises(ValueError, match=r"info\.json is not JSON"):
        records(str(converted))


@pytest.mark.parametrize("value", [None, [1], {"a": 1}, b"x", np.array(["a"]), 1j])
def test_what_cannot_be_stored(value):
    with pytest.raises(ValueError, match="cannot be stored; fields are numbers, texts or arrays"):
        Field.of(value)


@pytest.mark.parametrize(
    ("first", "other"),
    [(1, 1.0), ("a", 1), (np.zeros(2), np.zeros(3)), (np.zeros(2), np.zeros(2, np.float32))],
)
def test_a_field_is_the_same_in_all_examples(first, other):
    with pytest.raises(ValueError, match="where the first example has"):
        Field.of(first).pack(other)
