import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from input_pipeline import make_loader
from input_pipeline.convert import convert
from input_pipeline.decoder import Decoder
from input_pipeline.images import BadImageError
from input_pipeline.sources.folder import folder
from input_pipeline.sources.mixture import mixture
from input_pipeline.sources.records import records

SETTINGS = {"image_size": 6, "channels": 3}


def contents(directory):
    """Bytes of all files, info.json without what changes from run to run."""
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    info = json.loads(files.pop("info.json"))
    return files | {"info": {name: info[name] for name in info if name not in ("made", "source")}}


def test_records_equal_the_decoded_source(photos, tmp_path):
    source = folder(str(photos), split="train")
    done = []
    directory = convert(source, tmp_path, "train", shards=3, progress=done.append, **SETTINGS)
    assert directory == tmp_path / "train"
    assert sorted(path.name for path in directory.iterdir()) == [
        *(f"0000{k}-of-00003.array_record" for k in range(3)),
        "info.json",
    ]
    assert (done[0], done[-1]) == (0, 10)
    stored = records(str(tmp_path))
    assert stored.class_names == ("cat", "dog")
    fields = ("image", "label", "caption")
    for index, wanted in enumerate(Decoder(source, 6, 3, fields, "raise")(range(10), [])):
        example = stored[index]
        assert (example["label"], example["caption"]) == (wanted["label"], wanted["caption"])
        np.testing.assert_array_equal(example["image"], wanted["image"])
    info = json.loads((directory / "info.json").read_text())
    assert info["plan"]["fingerprint"] == source.fingerprint
    assert [shard["count"] for shard in info["shards"]] == [3, 3, 4]


def test_workers_write_the_same(photos, tmp_path):
    source = folder(str(photos), split="train")
    first = convert(source, tmp_path / "a", shards=2, **SETTINGS)
    second = convert(source, tmp_path / "b", shards=2, workers=2, **SETTINGS)
    assert contents(first) == contents(second)


def test_captions_come_through_tar_shards_and_records(photos, tmp_path):
    for split in ("train/cat", "train/dog"):
        for number in ("00", "01"):
            base = photos / split / number
            base.with_suffix(".txt").write_text(f"a {split[-3:]}, {number}")
    shutil.rmtree(photos / "test")
    whole = folder(str(photos), split="train")
    expected = [whole[i]["caption"] for i in range(10)]
    for kind in ("dog", "cat"):
        part = tmp_path / f"only_{kind}" / "train"
        part.mkdir(parents=True)
        shutil.copytree(photos / "train" / kind, part / kind)
        shutil.make_archive(str(tmp_path / "tars" / kind), "tar", part.parent)
    source = folder(str(tmp_path / "tars" / "*.tar"), split="train")
    convert(source, tmp_path / "records", **SETTINGS)
    for stored in (source, records(str(tmp_path / "records"))):
        assert stored.class_names == ("cat", "dog")
        batch = next(
            make_loader(
                stored,
                batch_size=10,
                seed=0,
                shuffle=False,
                fields=("image", "label", "caption"),
                process_index=0,
                process_count=1,
                **SETTINGS,
            )
        )
        assert batch["caption"].tolist() == expected
        assert batch["label"].tolist() == [0] * 5 + [1] * 5


def test_fields_are_those_asked_for(photos, tmp_path):
    source = folder(str(photos), split="train")
    convert(source, tmp_path, fields=("image", "caption"), **SETTINGS)
    stored = records(str(tmp_path))
    assert stored.fields == ("image", "caption")
    assert stored.num_classes == 0
    with pytest.raises(ValueError, match="has no 'depth'"):
        convert(source, tmp_path, "other", fields=("depth",), **SETTINGS)


def test_what_is_finished_is_left_alone(photos, tmp_path):
    source = folder(str(photos), split="train")
    directory = convert(source, tmp_path, **SETTINGS)
    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    done = []
    assert convert(source, tmp_path, progress=done.append, **SETTINGS) == directory
    assert done == [10]
    assert {path: path.stat().st_mtime_ns for path in directory.iterdir()} == before
    with pytest.raises(FileExistsError, match=r"holds other records \(image_size 6, not 5\)"):
        convert(source, tmp_path, image_size=5, channels=3)
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="mine is there and holds no records"):
        convert(source, tmp_path, "mine", **SETTINGS)


def test_settings_that_do_not_fit(photos, numbers, tmp_path):
    source = folder(str(photos), split="train")
    with pytest.raises(ValueError, match="shards: must be from 1 to 10, the examples, not 11"):
        convert(source, tmp_path, shards=11, **SETTINGS)
    with pytest.raises(ValueError, match="would lose its weights; convert each part"):
        convert(mixture((source,), (1.0,)), tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match="is empty"):
        convert(numbers(0), tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match="on_bad_image: 'no' is none of"):
        convert(source, tmp_path, on_bad_image="no", **SETTINGS)
    assert list(tmp_path.iterdir()) == [photos]


def test_a_field_of_changing_type_is_named(numbers, tmp_path):
    class Changing(numbers):
        def example(self, index, fields):
            return super().example(index, fields) | {"label": index if index < 3 else "three"}

    with pytest.raises(ValueError, match=r"example 3 of numbers\(5\): field 'label' is str where"):
        convert(Changing(5), tmp_path, image_size=2, channels=1)


def test_bad_images_stop_it_or_are_replaced_by_the_next(photos, tmp_path):
    bad = photos / "train" / "cat" / "03.png"
    bad.write_bytes(b"")
    source = folder(str(photos), split="train")
    with pytest.raises(BadImageError, match=r"cat/03\.png: the file is empty; .*'skip'"):
        convert(source, tmp_path, shards=5, **SETTINGS)
    convert(source, tmp_path, shards=5, on_bad_image="skip", **SETTINGS)
    stored = records(str(tmp_path))
    np.testing.assert_array_equal(stored[3]["image"], stored[4]["image"])
    info = json.loads((tmp_path / "train" / "info.json").read_text())
    assert info["replaced"] == [f"{bad}: the file is empty"]


PROGRAM = """
import sys, time
from input_pipeline.convert import convert
from input_pipeline.sources.digits import digits

def hang(done):
    if done > 900:  # the third of four shards of 359 is begun
        print("there", flush=True)
        time.sleep(100)

if __name__ == "__main__":
    convert(digits(), sys.argv[1], image_size=8, channels=1, shards=4, workers=1,
            progress=hang)
"""


def test_killed_conversion_goes_on_where_it_was(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": os.fspath(pathlib.Path(__file__).parents[2])}

    path = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, program, path],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout.readline() == "there\n"
    with pytest.raises(FileExistsError, match="another process is converting"):
        convert_digits(path)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)  # the workers have the pipe too: they end as well
    partial = path / "train.partial"
    assert not (path / "train").exists()
    with pytest.raises(FileNotFoundError, match="was not finished"):
        records(str(path))
    finished = [path.name for path in partial.glob("*.json") if path.stem != "plan"]
    assert len(finished) == 2

    shards = [name.replace(".json", ".array_record") for name in finished]
    times = {name: (partial / name).stat().st_mtime_ns for name in shards}
    done = []
    convert_digits(path, progress=done.append)
    assert done[0] == 359 + 360
    assert {name: (path / "train" / name).stat().st_mtime_ns for name in shards} == times
    convert_digits(tmp_path / "whole")
    assert contents(path / "train") == contents(tmp_path / "whole" / "train")
    assert not partial.exists()


def convert_digits(path, **options):
    from input_pipeline.sources.digits import digits

    return convert(digits(), path, **{"image_size": 8, "channels": 1, "shards": 4, **options})


def test_unfinished_conversion_of_other_settings_is_started_anew(tmp_path):
    def stop(done):
        if done > 900:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_digits(tmp_path, progress=stop)
    done = []
    convert_digits(tmp_path, channels=3, progress=done.append)
    assert done[0] == 0
    assert records(str(tmp_path))[7]["image"].shape == (8, 8, 3)
    convert_digits(tmp_path / "whole", channels=3)
    assert contents(tmp_path / "train") == contents(tmp_path / "whole" / "train")
