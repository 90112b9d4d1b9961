import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.experimental import mesh_utils

from training import mesh as meshes
from training.components import ConfigError


@dataclasses.dataclass(frozen=True)
class Device:
    """What the layout of a mesh reads of a device."""

    id: int
    process_index: int
    slice_index: int | None = None
    platform: str = "gpu"
    device_kind: str = "mock"
    coords: tuple[int, ...] = ()
    core_on_chip: int = 0


def cluster(slices, processes, local, named=True):
    """Devices of `slices` slices, each of so many processes of `local` devices."""
    return [
        Device(
            id=(s * processes + p) * local + n,
            process_index=s * processes + p,
            slice_index=s if named else None,
        )
        for s in range(slices)
        for p in range(processes)
        for n in range(local)
    ]


def v5p(slice_index=None):
    """A v5p of 4 x 4 x 4: each host has 2 x 2 chips, numbered along x first."""
    devices = []
    for z in range(4):
        for y in range(4):
            for x in range(4):
                host = (z * 2 + y // 2) * 2 + x // 2
                devices.append(
                    Device(
                        id=(z * 4 + y) * 4 + x + 64 * (slice_index or 0),
                        process_index=host + 16 * (slice_index or 0),
                        slice_index=slice_index,
                        platform="tpu",
                        device_kind="TPU v5",
                        coords=(x, y, z),
                    )
                )
    return devices


def test_minus_one_takes_what_is_left():
    mesh = meshes.make_mesh(data=-1, fsdp=2)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1}


@pytest.mark.parametrize("axes", [{"data": 3}, {"data": -1, "fsdp": 3}, {"data": 8, "fsdp": 2}])
def test_wrong_product_names_the_axes(axes):
    with pytest.raises(ValueError, match=r"config\.mesh.*8 devices"):
        meshes.make_mesh(**axes)


def test_two_open_axes_are_refused():
    with pytest.raises(ValueError, match="at most one"):
        meshes.make_mesh(data=-1, fsdp=-1)


def test_batch_is_split_over_data_and_fsdp():
    mesh = meshes.make_mesh(data=2, fsdp=4)
    x = jax.device_put(jnp.arange(16.0), meshes.batch_sharding(mesh))
    assert {s.data.shape for s in x.addressable_shards} == {(2,)}


def check(sizes, devices):
    """The arrangement, once all that is promised of it holds."""
    array = meshes.arrange(sizes, devices)
    assert array.shape == sizes
    assert set(array.ravel()) == set(devices)
    rows = array.reshape(sizes[0] * sizes[1], sizes[2])
    for group in rows:
        assert len({d.slice_index for d in group}) == 1, "tensor leaves a slice"
    owned = {}
    for process in {d.process_index for d in devices}:
        index, count = meshes.share_of(array, process)
        width = len(rows) // count
        mine = {r for r, group in enumerate(rows) for d in group if d.process_index == process}
        assert mine == set(range(index * width, (index + 1) * width))
        owned[process] = index
    # Parts are in the order of the processes, and every part is somebody's.
    ordered = [owned[p] for p in sorted(owned)]
    assert ordered == sorted(ordered)
    assert set(ordered) == set(range(count))
    return array


powers = st.sampled_from([1, 2, 4, 8])


@hypothesis.given(
    slices=st.sampled_from([1, 2, 3, 4, 6]),
    processes=powers,
    local=powers,
    data=st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16]),
    tensor=st.sampled_from([1, 2, 3, 4, 8]),
)
@hypothesis.settings(max_examples=300)
def test_every_arrangement_keeps_its_promises_or_is_refused(slices, processes, local, data, tensor):
    devices = cluster(slices, processes, local)
    hypothesis.assume(len(devices) % (data * tensor) == 0)
    sizes = (data, len(devices) // (data * tensor), tensor)
    fits = (processes * local) % tensor == 0 and (data % slices == 0 or slices % data == 0)
    if not fits:
        with pytest.raises(ConfigError, match=r"config\.mesh"):
            meshes.arrange(sizes, devices)
        return
    check(sizes, devices)


@pytest.mark.parametrize(
    ("sizes", "along"),
    [((4, 8, 1), (4, 1)), ((8, 2, 2), (4, 1)), ((2, 16, 1), (2, 2)), ((1, 32, 1), (1, 4))],
)
def test_slices_lie_along_data_then_fsdp(sizes, along):
    array = check(sizes, cluster(slices=4, processes=2, local=4))
    slices = np.vectorize(lambda d: d.slice_index)(array)
    blocks = slices.reshape(along[0], sizes[0] // along[0], along[1], sizes[1] // along[1], -1)
    expected = np.arange(4).reshape(along[0], 1, along[1], 1, 1)
    np.testing.assert_array_equal(blocks, np.broadcast_to(expected, blocks.shape))


def test_processes_are_slices_where_nothing_is_said_of_slices():
    check((2, 4, 1), cluster(1, 2, 4, named=False))
    with pytest.raises(ConfigError, match=r"tensor must divide 4"):
        meshes.arrange((1, 1, 8), cluster(1, 2, 4, named=False))


@pytest.mark.parametrize("sizes", [(1, 64, 1), (4, 16, 1), (2, 8, 4), (64, 1, 1), (8, 1, 8)])
def test_chips_of_a_pod(sizes):
    check(sizes, v5p())


@pytest.mark.parametrize("sizes", [(2, 64, 1), (1, 128, 1), (4, 16, 2), (16, 1, 8)])
def test_two_pods(sizes):
    check(sizes, v5p(0) + v5p(1))


def test_one_host_keeps_the_order_that_is_best_for_its_links():
    host = [
        Device(y * 2 + x, 0, 0, "tpu", "TPU v5 lite", coords=(x, y, 0))
        for y in range(4)
        for x in range(2)
    ]
    array = meshes.arrange((1, 8, 1), host)
    np.testing.assert_array_equal(array, mesh_utils.create_device_mesh((1, 8, 1), host))
    assert [d.id for d in array.ravel()] != list(range(8))


def test_processes_that_share_rows_load_the_same():
    array = meshes.arrange((1, 2, 8), cluster(slices=1, processes=4, local=4))
    shares = [meshes.share_of(array, process) for process in range(4)]
    assert shares == [(0, 2), (0, 2), (1, 2), (1, 2)]


def test_rows_that_straddle_processes_are_refused():
    # Three devices a row, four a process.
    with pytest.raises(ConfigError, match="unequal or overlapping"):
        meshes.share_of(meshes.arrange((1, 4, 3), cluster(1, 3, 4)), 0)


def test_slices_of_unequal_size_are_refused():
    with pytest.raises(ConfigError, match=r"unequal size \[4, 8\]"):
        meshes.arrange((1, 12, 1), cluster(1, 2, 4) + [Device(i, 9, 1) for i in range(8, 12)])
