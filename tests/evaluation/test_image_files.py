import io
import logging
import shutil
import tarfile
import tempfile
import tracemalloc
import zipfile

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image

from evaluation import image_files
from evaluation.image_files import FileError

RANDOM = np.random.RandomState(0)
IMAGES = RANDOM.randint(0, 256, (5, 8, 8, 3)).astype(np.uint8)
NAMES = ("a/10.png", "a/2.png", "b.webp", "c.bmp", "d.PNG")


def store(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for name, image in zip(NAMES, IMAGES, strict=True):
        store(root / name, image, **({"lossless": True} if name.endswith("webp") else {}))
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_text("no image")
    return root


def test_a_folder_by_names(folder):
    found = image_files.read(folder)
    assert (found.count, found.side, found.channels) == (5, 8, 3)
    np.testing.assert_array_equal(np.concatenate(list(found.chunks(2))), IMAGES)
    assert [len(chunk) for chunk in found.chunks(2)] == [2, 2, 1]
    np.testing.assert_array_equal(found.rows(1, 4), IMAGES[1:4])
    assert found.labels is None


def test_a_tar_and_a_zip_are_as_their_folder(folder, tmp_path):
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(folder, arcname=".")
    shutil.make_archive(str(tmp_path / "all"), "zip", folder)
    for path in (tmp_path / "all.tar", tmp_path / "all.zip"):
        found = image_files.read(path)
        assert found.identity == image_files.read(folder).identity
        np.testing.assert_array_equal(found.rows(0, 5), IMAGES)


def test_identity_is_of_names_and_bytes(folder):
    before = image_files.read(folder).identity
    assert image_files.read(folder).identity == before
    (folder / "notes.txt").write_text("other")
    assert image_files.read(folder).identity == before
    store(folder / "c.bmp", IMAGES[0])
    changed = image_files.read(folder).identity
    assert changed != before
    (folder / "c.bmp").rename(folder / "c2.bmp")
    assert image_files.read(folder).identity != changed


def test_grey(tmp_path):
    for k in range(3):
        store(tmp_path / f"{k}.png", IMAGES[k, ..., :1])
    found = image_files.read(tmp_path)
    assert found.channels == 1
    np.testing.assert_array_equal(found.rows(0, 3), IMAGES[:3, ..., :1])


def test_jpeg_is_warned_of(folder, caplog):
    with caplog.at_level(logging.WARNING):
        image_files.read(folder)
        assert not caplog.messages
        store(folder / "x.jpg", IMAGES[0])
        assert image_files.read(folder).count == 6
    assert "1 of 6 images are JPEG" in caplog.text


def test_the_first_that_differs_is_named(folder):
    store(folder / "grid.png", np.zeros((20, 9, 3), np.uint8))
    with pytest.raises(FileError, match=r"grid.png: 9 x 20 pixels, RGB, and a/10.png is 8 x 8"):
        image_files.read(folder)
    store(folder / "e.png", IMAGES[0, ..., :1])
    with pytest.raises(FileError, match=r"e.png: 8 x 8 pixels, grey, and a/10.png is .* RGB"):
        image_files.read(folder)


@pytest.mark.parametrize("mode", ["RGBA", "P", "1", "CMYK", "LA", "I;16"])
def test_other_modes_are_refused(folder, mode):
    name = "cc.tif" if mode == "CMYK" else "cc.png"
    picture = Image.fromarray(IMAGES[0])
    if mode == "I;16":
        picture = Image.fromarray(IMAGES[0, ..., 0].astype(np.uint16))
    else:
        picture = picture.convert(mode)
    picture.save(folder / name)
    with pytest.raises(FileError, match=rf"{name}: pixels of mode {mode}; allowed are L .* RGB"):
        image_files.read(folder)


def test_folders_that_do_not_do(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="empty: no image among 0 files"):
        image_files.read(tmp_path / "empty")
    with pytest.raises(FileError, match="nothing; give a directory"):
        image_files.read(tmp_path / "none")
    with pytest.raises(FileError, match="no file matches"):
        image_files.read(tmp_path / "*.tar")
    store(tmp_path / "wide" / "0.png", np.zeros((4, 8, 3), np.uint8))
    with pytest.raises(FileError, match=r"0.png: 8 x 4 pixels.*square"):
        image_files.read(tmp_path / "wide")
    (folder / "aa.png").write_bytes(b"")
    with pytest.raises(FileError, match=r"aa.png: cannot be decoded .the file is empty"):
        image_files.read(folder)
    (folder / "aa.png").write_bytes(b"no png")
    with pytest.raises(FileError, match=r"aa.png: cannot be decoded"):
        image_files.read(folder)
    for name in ("bad.zip", "bad.tar"):
        (tmp_path / name).write_bytes(b"PK" + bytes(1000))
        with pytest.raises(FileError, match=rf"{name}.*not written to its end"):
            image_files.read(tmp_path / name)
    (tmp_path / "bad.tar.gz").write_bytes(b"")
    with pytest.raises(FileError, match="is compressed"):
        image_files.read(tmp_path / "bad.tar.gz")


def test_a_truncated_picture_is_named_when_it_is_read(folder):
    data = (folder / "d.PNG").read_bytes()
    (folder / "d.PNG").write_bytes(data[: len(data) // 2])
    found = image_files.read(folder)
    found.rows(0, 4)
    with pytest.raises(FileError, match=r"d.PNG: cannot be decoded .*truncated"):
        found.rows(3, 5)


@pytest.mark.parametrize("compressed", [False, True])
def test_an_array(tmp_path, compressed):
    labels = np.array([3, 1, 4, 1, 5])
    saved = np.savez_compressed if compressed else np.savez
    saved(tmp_path / "a.npz", arr_0=IMAGES, arr_1=labels)
    found = image_files.read(tmp_path / "a.npz")
    assert (found.count, found.side, found.channels) == (5, 8, 3)
    np.testing.assert_array_equal(np.concatenate(list(found.chunks(2))), IMAGES)
    np.testing.assert_array_equal(found.rows(3, 5), IMAGES[3:])
    np.testing.assert_array_equal(found.rows(0, 1), IMAGES[:1])
    np.testing.assert_array_equal(found.labels, labels)


@hypothesis.given(
    ranges=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)).map(sorted), max_size=6),
    compressed=st.booleans(),
)
def test_any_rows_of_an_array_in_any_order(ranges, compressed):
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/a.npz"
        (np.savez_compressed if compressed else np.savez)(path, arr_0=IMAGES)
        found = image_files.read(path)
        for first, last in ranges:
            np.testing.assert_array_equal(found.rows(first, last), IMAGES[first:last])


def test_identity_of_an_array_is_of_its_pixels(tmp_path):
    a, b, c = (tmp_path / f"{name}.npz" for name in "abc")
    np.savez(a, arr_0=IMAGES)
    np.savez_compressed(b, arr_1=np.arange(5), arr_0=IMAGES)
    np.savez(c, arr_0=IMAGES[::-1])
    identity = [image_files.read(path).identity for path in (a, b, c)]
    assert identity[0] == identity[1] != identity[2]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES}, "no arr_0; it has images"),
        ({"arr_0": IMAGES / 255}, r"arr_0 is float64 \[5, 8, 8, 3\]; images are uint8"),
        ({"arr_0": IMAGES.astype(np.int64)}, "arr_0 is int64"),
        ({"arr_0": IMAGES.transpose(0, 3, 1, 2).copy()}, r"transpose it \(0, 2, 3, 1\)"),
        ({"arr_0": IMAGES[..., 0]}, r"uint8 \[5, 8, 8\].*four axes"),
        ({"arr_0": IMAGES[..., :2]}, "the last 1 or 3"),
        ({"arr_0": IMAGES[:0]}, "no image"),
        ({"arr_0": IMAGES[:, :4]}, r"\[5, 4, 8, 3\]; give square images"),
        ({"arr_0": np.asfortranarray(IMAGES)}, "Fortran"),
        ({"arr_0": np.array([{}], dtype=object)}, "arr_0: objects"),
        ({"arr_0": IMAGES, "arr_1": np.arange(4)}, r"arr_1 is int64 \[4\]; labels are whole"),
        ({"arr_0": IMAGES, "arr_1": np.zeros(5)}, "arr_1 is float64"),
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(FileError, match=rf"bad\.npz: .*{message}") as error:
        image_files.read(tmp_path / "bad.npz")
    assert "\n" not in str(error.value)


def test_a_damaged_array_is_refused(tmp_path):
    path = tmp_path / "bad.npz"
    np.savez(path, arr_0=IMAGES)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(FileError, match=r"bad\.npz: .*not written to its end"):
        image_files.read(path)
    place = whole.index(IMAGES[2].tobytes())
    path.write_bytes(whole[:place] + bytes(9) + whole[place + 9 :])
    with pytest.raises(FileError, match=r"bad\.npz: arr_0: .*CRC"):
        _ = image_files.read(path).identity
    # A member that ends before the rows that its header promises.
    buffer = io.BytesIO()
    np.save(buffer, IMAGES)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", buffer.getvalue()[:-1])
    with pytest.raises(FileError, match=r"1087 bytes where uint8 \[5, 8, 8, 3\] takes 1088"):
        image_files.read(path)


def test_memory_is_of_a_chunk(tmp_path):
    """200 MB of zeros, compressed, go through in parts of 2 MB, to their digest in parts of 4."""
    path = tmp_path / "zeros.npz"
    zeros = np.zeros((1, 64, 64, 3), np.uint8)
    np.savez_compressed(path, arr_0=np.broadcast_to(zeros, (16276, 64, 64, 3)))
    assert path.stat().st_size < 1e6
    tracemalloc.start()
    found = image_files.read(path)
    count = sum(len(chunk) for chunk in found.chunks(170))
    peak = tracemalloc.get_traced_memory()[1]
    _ = found.identity
    digest_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count * zeros.size == 199_999_488
    assert peak < 10e6
    assert digest_peak < 25e6
