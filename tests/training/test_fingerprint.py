import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from training import fingerprint, mesh


def example(dtype):
    rng = np.random.default_rng(0)
    if dtype == "bool":
        return rng.random((8, 6, 4)) > 0.5
    return (rng.standard_normal((8, 6, 4)) * 100).astype(np.dtype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "bool"])
def test_host_and_device_agree(dtype):
    array = example(jnp.bfloat16 if dtype == "bfloat16" else dtype)
    assert int(fingerprint.of_host(array)) == int(fingerprint.of_device(jnp.asarray(array)))


def test_float64_on_the_host_is_that_of_its_halves():
    array = example("float64")
    assert fingerprint.of_host(array) == fingerprint.of_host(array.view(np.uint32))


@pytest.mark.parametrize("spec", [("data",), (None, "tensor"), ("data", "tensor")])
def test_does_not_depend_on_the_layout(spec):
    array = example("float32")
    place = NamedSharding(mesh.make_mesh(data=4, tensor=2), PartitionSpec(*spec))
    spread = jax.device_put(array, place)
    assert int(fingerprint.of_device(spread)) == int(fingerprint.of_host(array))


def test_one_bit_and_two_swapped_values_show():
    array = example("float32")
    before = fingerprint.of_host(array)
    flipped = array.copy()
    flipped.view(np.uint32)[3, 2, 1] ^= 1
    swapped = array.copy()
    swapped[0, 0, 0], swapped[7, 5, 3] = array[7, 5, 3], array[0, 0, 0]
    moved = np.roll(array, 1, axis=0)
    zero = np.zeros_like(array)
    values = {int(fingerprint.of_host(x)) for x in (flipped, swapped, moved, zero, -zero)}
    assert len(values | {int(before)}) == 6


def test_names_types_and_shapes_are_told():
    tree = {"params": {"w": jnp.ones((2, 3)), "k": [jax.random.key(0)]}, "n": jnp.int32(4)}
    found = fingerprint.fingerprints(tree)
    assert {name: value[:2] for name, value in found.items()} == {
        "params/w": ("float32", (2, 3)),
        "params/k/0": ("key<fry>", ()),
        "n": ("int32", ()),
    }
    other = fingerprint.fingerprints({"params": {"k": [jax.random.key(1)]}})
    assert other["params/k/0"][2] != found["params/k/0"][2]


def test_what_is_on_devices_is_one_program(monkeypatch):
    """Several that wait for other processes may run in another order in each, and all wait."""
    tree = {"w": jnp.ones((2, 3)), "b": jnp.zeros(5, jnp.bfloat16), "k": jax.random.key(0)}
    expected, calls = fingerprint.fingerprints(tree), []
    program = fingerprint._of_devices
    monkeypatch.setattr(fingerprint, "_on_host", lambda raw: False)
    monkeypatch.setattr(
        fingerprint, "_of_devices", lambda arrays: calls.append(len(arrays)) or program(arrays)
    )
    assert fingerprint.fingerprints(tree) == expected
    assert calls == [3]
