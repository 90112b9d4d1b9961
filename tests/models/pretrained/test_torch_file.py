"""Both formats of .pth against what PyTorch wrote, and files that are programs."""

import collections
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from models.pretrained.torch_file import read_weights

GOLDEN = pathlib.Path("tests/golden/models")
EXPECTED = np.load(GOLDEN / "torch_file.npz")


@pytest.mark.parametrize("kind", ["zip", "old"])
def test_state_dict(kind):
    tensors = read_weights(GOLDEN / f"torch_file_{kind}.pth")
    assert set(tensors) == set(EXPECTED)
    for name, expected in EXPECTED.items():
        assert tensors[name].dtype == expected.dtype, name
        np.testing.assert_array_equal(tensors[name], expected)


def test_safetensors_beside_counters(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"half": np.ones(2, np.float16), "steps": np.array(3)}, path)
    tensors = read_weights(path)
    assert (tensors["half"].dtype, tensors["steps"].dtype) == (np.float32, np.int64)


class Runs:
    """What it is unpickled by, which is called while the file is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def as_file(path, payload, kind="zip", **files):
    if kind == "old":
        path.write_bytes(pickle.dumps(payload, 2))
        return path
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", payload if isinstance(payload, bytes) else dump(payload))
        for name, data in files.items():
            archive.writestr(f"a/{name}", data)
    return path


def dump(payload):
    return pickle.dumps(payload, 2)


@pytest.mark.parametrize("kind", ["zip", "old"])
@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, "posix.system"), (eval, "__builtin__.eval"), (np.load, "numpy.load")],
)
def test_a_program_is_refused_by_name(tmp_path, kind, function, name):
    trap = tmp_path / "ran"
    command = f"touch {trap}" if function is os.system else f"open({str(trap)!r}, 'w')"
    evil = collections.OrderedDict(weight=Runs(function, command))
    path = as_file(tmp_path / "evil.pth", evil, kind)
    pickle.loads(dump(evil)) if function is os.system else None
    assert trap.exists() == (function is os.system)  # the trap works
    trap.unlink(missing_ok=True)
    with pytest.raises(ValueError, match=rf"evil\.pth: names {name}, .* nothing of it was run"):
        read_weights(path)
    assert not trap.exists()


def tensor_file(path, shape=(2,), strides=(1,), offset=0, count=4, data=bytes(16)):
    """Written by hand: a tensor `w` of the storage `0` of float32."""

    def tuple_of(*numbers):
        return b"(" + b"".join(b"J" + n.to_bytes(4, "little", signed=True) for n in numbers) + b"t"

    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu"
    storage += b"J" + count.to_bytes(4, "little", signed=True) + b"tQ"
    arguments = b"(" + storage + b"J" + offset.to_bytes(4, "little", signed=True)
    arguments += tuple_of(*shape) + tuple_of(*strides) + b"\x89Nt"
    payload = b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Rs."
    return as_file(path, payload, **{"data/0": data})


def test_tensors_by_hand(tmp_path):
    data = np.arange(4, dtype=np.float32).tobytes()
    path = tensor_file(tmp_path / "w.pth", (2, 2), (1, 2), data=data)
    np.testing.assert_array_equal(read_weights(path)["w"], [[0, 2], [1, 3]])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shape": (5,)}, r"a tensor of \(5,\) lies beyond the 4 numbers"),
        ({"shape": (2,), "strides": (4,)}, "beyond"),
        ({"offset": 3}, "beyond"),
        ({"shape": (2**30,), "strides": (0,)}, "beyond"),
        ({"strides": (-1,)}, "is no tensor"),
        ({"strides": ()}, "is no tensor"),
        ({"count": -1}, "is no storage"),
        ({"data": bytes(15)}, "storage 0 is cut off"),
    ],
)
def test_memory_beyond_the_file_is_not_read(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        read_weights(tensor_file(tmp_path / "w.pth", **wrong))


@pytest.mark.parametrize(
    ("payload", "files", "message"),
    [
        ([1], {}, "holds a list"),
        ({"state_dict": {}}, {}, "'state_dict' is a dict, no tensor"),
        ({}, {"constants.pkl": b""}, "TorchScript"),
        ({}, {"byteorder": b"big"}, "little-endian"),
    ],
)
def test_what_is_no_state_dict(tmp_path, payload, files, message):
    with pytest.raises(ValueError, match=message):
        read_weights(as_file(tmp_path / "a.pth", payload, **files))


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"not a file", pickle.dumps(3), b"\x80\x02", b"\x80\x02cos\n", b"\x80\x020."]
)
def test_what_is_no_file_of_weights(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: "):
        read_weights(path)


def test_a_file_that_is_cut_off(tmp_path):
    whole = (GOLDEN / "torch_file_old.pth").read_bytes()
    path = tmp_path / "a.pth"
    for length in range(1, len(whole), 50):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.pth: "):
            read_weights(path)
