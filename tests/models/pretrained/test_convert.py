import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from models.functional import functional
from models.pretrained.convert import fill, read_safetensors

NETWORK = functional(lambda rngs: nnx.Sequential(nnx.Linear(3, 2, rngs=rngs)))
NAMES = {"layers/0": "first"}
TENSORS = {"first.weight": np.arange(6.0).reshape(2, 3), "first.bias": np.ones(2)}


def test_reads_what_the_safetensors_library_wrote():
    tensors = read_safetensors("tests/golden/models/example.safetensors")
    ramp = np.arange(6, dtype=np.float32)
    expected = {
        "float32": ramp.reshape(2, 3) / np.float32(7),
        "float16": ramp / 8,
        "bfloat16": ramp.reshape(3, 2),
        "scalar": np.float32(2.5),
    }
    assert set(tensors) == set(expected)
    for name, value in expected.items():
        assert tensors[name].dtype == np.float32
        np.testing.assert_array_equal(tensors[name], value)


def test_a_type_that_is_no_float_is_named(tmp_path):
    save_file({"steps": np.arange(3)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="steps is int64"):
        read_safetensors(tmp_path / "x.safetensors")


def test_kernels_are_turned():
    params = fill(NETWORK, TENSORS, NAMES)
    np.testing.assert_array_equal(params["layers"]["0"]["kernel"], TENSORS["first.weight"].T)


def test_all_misfits_are_listed_at_once():
    tensors = {"first.weight": np.ones((2, 4)), "ema.decay": np.ones(())}
    with pytest.raises(ValueError, match="do not fit") as error:
        fill(NETWORK, tensors, NAMES)
    text = str(error.value)
    assert "no tensor first.bias for layers/0/bias (2,)" in text
    assert "first.weight has (4, 2) for layers/0/kernel (3, 2)" in text
    assert "tensor ema.decay () has no place" in text
