import io
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from input_pipeline.sources import shapes_render as render
from input_pipeline.sources.shapes import shapes

ROOT = os.fspath(pathlib.Path(__file__).parents[3])
# As `shapes`, with fewer scenes.
PROGRAM = """
import sys
from input_pipeline.sources import shapes_render as render
render.SPLITS.update(train=int(sys.argv[2]), test=10, compositional=10)
from input_pipeline.sources.shapes import shapes
print(len(shapes(32, "train", data_dir=sys.argv[1])))
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for split, count in (("train", 60), ("test", 20), ("compositional", 20)):
            patch.setitem(render.SPLITS, split, count)
        directory = str(tmp_path_factory.mktemp("tfds"))
        shapes(32, data_dir=directory)
        shapes(64, data_dir=directory)
        yield directory


def start(data_dir, count):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(data_dir), str(count)],
        env={**os.environ, "PYTHONPATH": ROOT},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("split", ["train", "test", "compositional"])
def test_record_i_is_scene_i(data_dir, size, split):
    source = shapes(size, split, data_dir=data_dir)
    assert len(source) == render.SPLITS[split]
    for i in range(0, len(source), 7):
        scene = render.scene(split, i)
        example = source[i]
        pixels = np.asarray(Image.open(io.BytesIO(example.pop("image"))))
        np.testing.assert_array_equal(pixels, render.render(scene, size))
        assert example == {"label": scene.label, "caption": scene.caption, **scene.attributes}


def test_metadata(data_dir):
    source = shapes(32, data_dir=data_dir)
    assert source.num_classes == 36
    first = source[0]
    assert source.class_names[first["label"]] == f"{first['colour']} {first['shape']}"
    assert source.fields[0] == "image"
    assert {"label", "caption", "position", "second_shape"} < set(source.fields)
    prints = {shapes(s, p, data_dir).fingerprint for s in (32, 64) for p in ("train", "test")}
    assert len(prints) == 4


@pytest.mark.parametrize("objects", [1, 2])
def test_scenes_of_so_many_objects_alone(data_dir, objects):
    whole = shapes(32, "compositional", str(data_dir))
    part = shapes(32, "compositional", str(data_dir), objects)
    wanted = [
        example
        for example in (whole.example(i, ("caption", "second_shape")) for i in range(len(whole)))
        if (example["second_shape"] == "none") == (objects == 1)
    ]
    assert [part.example(i, ("caption",))["caption"] for i in range(len(part))] == [
        example["caption"] for example in wanted
    ]
    assert part.examples([3, 0], ("caption",))[1]["caption"] == wanted[0]["caption"]
    assert part.class_names == whole.class_names
    assert part.fingerprint != whole.fingerprint


def test_source_survives_pickling_and_is_small(data_dir):
    source = shapes(32, data_dir=data_dir)
    source[0]
    sent = pickle.dumps(source)
    assert len(sent) < 2000
    assert pickle.loads(sent)[3] == source[3]


def test_only_fields_asked_for_are_decoded(data_dir):
    assert shapes(32, data_dir=data_dir).example(0, ("image", "label")).keys() == {"image", "label"}


def test_arguments_are_checked(data_dir):
    with pytest.raises(ValueError, match="48 is none of 32, 64"):
        shapes(48)
    with pytest.raises(ValueError, match="'valid' is none of 'compositional', 'test', 'train'"):
        shapes(32, "valid", data_dir=data_dir)


def test_killed_preparation_leaves_nothing_and_several_at_once_succeed(tmp_path):
    process = start(tmp_path, 100_000)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("shapes/32/incomplete.*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.5)  # some hundred scenes into the first split
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "shapes/32/1.0.0").exists()

    running = [start(tmp_path, 300) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in running]
    assert [output.splitlines()[-1] for output in outputs] == ["300", "300"]
