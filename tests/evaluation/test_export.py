import json
import os
import tracemalloc
import zipfile

import jax
import numpy as np
import pytest
from etils import epath

from evaluation import export, image_files
from pipelines.chunks import Chunks

RANDOM = np.random.RandomState(0)
IMAGES = RANDOM.randint(0, 256, (11, 8, 8, 3)).astype(np.uint8)
LABELS = np.arange(11) % 4


def test_images_of_a_file(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "in.npz", arr_0=IMAGES, arr_1=LABELS)
    monkeypatch.setattr(export, "_CHUNK", 4)
    path = tmp_path / "sub" / "out.npz"
    export.export(image_files.read(tmp_path / "in.npz"), path)
    with np.load(path) as found:
        assert found.files == ["arr_0", "arr_1"]
        np.testing.assert_array_equal(found["arr_0"], IMAGES)
        np.testing.assert_array_equal(found["arr_1"], LABELS)
        assert found["arr_1"].dtype == np.int64
    assert os.listdir(path.parent) == ["out.npz"]
    # As ADM reads it: a member named so, of version 1 or 2, in C order.
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
        assert archive.testzip() is None
        assert np.lib.format.read_magic(file) == (1, 0)
        assert np.lib.format.read_array_header_1_0(file) == ((11, 8, 8, 3), False, np.uint8)
        assert file.read() == IMAGES.tobytes()
    first = path.read_bytes()
    export.export(image_files.read(path), path)
    assert path.read_bytes() == first


def test_grey_images_become_rgb(tmp_path):
    np.savez(tmp_path / "in.npz", arr_0=IMAGES[..., :1])
    export.export(image_files.read(tmp_path / "in.npz"), tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as found:
        assert found.files == ["arr_0"]
        np.testing.assert_array_equal(found["arr_0"], IMAGES[..., :1].repeat(3, axis=-1))


def samples(directory, labels):
    chunks = Chunks(epath.Path(directory / "chunks"), 4)
    for k in range(3):
        rows = chunks.rows(k)
        pictures = jax.numpy.asarray(IMAGES[rows % 11])
        chunks.write(k, jax.numpy.asarray(rows), images=pictures, labels=labels[rows % 11])
    return directory


@pytest.mark.parametrize("labelled", [False, True])
def test_samples_of_a_run(tmp_path, labelled):
    labels = jax.numpy.asarray(LABELS if labelled else 0 * LABELS)
    directory = samples(tmp_path / "samples", labels)
    with pytest.raises(image_files.FileError, match="no finished samples"):
        export.export_samples(directory, tmp_path / "out.npz")
    with pytest.raises(image_files.FileError, match="not all of 13 samples"):
        export.export_samples(directory, tmp_path / "out.npz", count=13)
    (directory / "info.json").write_text(json.dumps({"count": 11}))
    for count in (0, 6):
        export.export_samples(directory, tmp_path / "out.npz", count)
        with np.load(tmp_path / "out.npz") as found:
            np.testing.assert_array_equal(found["arr_0"], IMAGES[: count or 11])
            assert ("arr_1" in found.files) == labelled
            if labelled:
                np.testing.assert_array_equal(found["arr_1"], LABELS[: count or 11])


def test_it_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "out.npz"
    path.write_bytes(b"before")
    for chunks, message in (
        ([IMAGES[:4], IMAGES[:, :4]], r"uint8 \[11, 4, 8, 3\] from row 4 on"),
        ([IMAGES[:4]], "4 rows, where 11 were to be written"),
        ([IMAGES, IMAGES], "22 rows, where 11"),
    ):
        with pytest.raises(ValueError, match=message):
            export.write(path, chunks, 11, 8)
    with pytest.raises(ValueError, match="3 labels for 11 images"):
        export.write(path, [IMAGES], 11, 8, LABELS[:3])
    assert os.listdir(tmp_path) == ["out.npz"]
    assert path.read_bytes() == b"before"
    with pytest.raises(image_files.FileError, match="bucket"):
        export.write("gs://bucket/out.npz", [IMAGES], 11, 8)


def test_memory_is_of_a_chunk(tmp_path):
    """100 MB go through in parts of 1 MB."""
    chunk = np.zeros((80, 64, 64, 3), np.uint8)
    tracemalloc.start()
    export.write(tmp_path / "out.npz", (chunk for _ in range(100)), 8000, 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "out.npz").stat().st_size > 98_304_000
    assert peak < 5e6


def test_the_command(tmp_path, capsys):
    images = np.random.RandomState(0).randint(0, 256, (3, 4, 4, 3)).astype(np.uint8)
    np.savez(tmp_path / "theirs.npz", arr_0=images)
    assert export.main([str(tmp_path / "theirs.npz"), str(tmp_path / "out.npz")]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["arr_0"], images)
    assert export.main([str(tmp_path / "nowhere"), str(tmp_path / "out.npz")]) == 2
    assert "nowhere: there is nothing" in capsys.readouterr().err
