"""The device mesh over fast and slow links, and where batches and parameters lie on it."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from training import partition
from training.components import ConfigError

AXES = ("data", "fsdp", "tensor")


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Arranges devices as (data, fsdp, tensor); one axis may be -1 and takes what is left.

    Rows of a batch lie over data and fsdp in the order of the processes, so that each process
    holds consecutive rows. Devices in other slices, see `arrange`, are reached over data.

    Raises:
        ConfigError: the axes do not multiply to the number of devices, or do not fit the slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    mesh = Mesh(arrange(_sizes(data, fsdp, tensor, len(devices)), devices), AXES)
    batch_share(mesh)
    return mesh


def _sizes(data: int, fsdp: int, tensor: int, count: int) -> tuple[int, int, int]:
    """The axes, -1 filled in."""
    sizes = [data, fsdp, tensor]
    asked = f"data={data}, fsdp={fsdp}, tensor={tensor}"
    if sizes.count(-1) > 1:
        raise ConfigError(f"config.mesh: {asked}: at most one axis may be -1 (the rest)")
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and count % fixed == 0:
        sizes[sizes.index(-1)] = count // fixed
    if math.prod(sizes) != count:
        raise ConfigError(
            f"config.mesh: {asked} does not arrange {count} devices; the product of the axes must "
            "be that number (-1 in one axis takes what the others leave)"
        )
    return tuple(sizes)


def arrange(sizes: tuple[int, int, int], devices: Sequence[Any]) -> np.ndarray:
    """The devices as an array [data, fsdp, tensor].

    Links are fast within a slice: a TPU slice or the GPUs that `slice_index` puts together;
    elsewhere, within a process. Between slices data is parallel as far as that divides, the rest
    is fsdp. Within a slice the order is JAX's for its links, where the processes' rows stay in
    order; otherwise that of the processes, each with neighbouring chips.

    Raises:
        ConfigError: the axes do not fit the slices.
    """
    slices = _slices(devices)
    across = _across(sizes, [len(each) for each in slices])
    within = tuple(size // part for size, part in zip(sizes, across, strict=True))
    in_order = [device for each in slices for device in each]
    plain = np.array(in_order, dtype=object).reshape(sizes)
    try:
        if len(slices) == 1:
            fast = mesh_utils.create_device_mesh(within, in_order)
        else:
            fast = mesh_utils.create_hybrid_device_mesh(
                within,
                across,
                in_order,
                process_is_granule=_slice_of(in_order[0]) is None,
                should_sort_granules_by_key=False,
            )
    except NotImplementedError:  # the axes would split one of the torus
        return plain
    rows = [device.process_index for device in fast.ravel()]
    return fast if rows == sorted(rows) else plain


def _slice_of(device: Any) -> int | None:
    return getattr(device, "slice_index", None)


def _slices(devices: Sequence[Any]) -> list[list[Any]]:
    """Devices by slice, in the order of their processes."""
    named = all(_slice_of(device) is not None for device in devices)
    # A TPU that is described and not there is one slice.
    alone = not named and devices[0].platform == "tpu"
    found: dict[int, list[Any]] = {}
    for device in sorted(devices, key=lambda device: (device.process_index, device.id)):
        key = 0 if alone else _slice_of(device) if named else device.process_index
        found.setdefault(key, []).append(device)
    return list(found.values())


def _across(sizes: tuple[int, int, int], counts: Sequence[int]) -> tuple[int, int, int]:
    """How many slices lie along each axis."""
    data, fsdp, tensor = sizes
    asked = f"config.mesh: data={data}, fsdp={fsdp}, tensor={tensor}"
    if len(set(counts)) > 1:
        raise ConfigError(f"{asked}: slices of unequal size {sorted(counts)} make no mesh")
    slices, each = len(counts), counts[0]
    where = f"{slices} slices (or hosts) of {each} devices"
    if each % tensor:
        raise ConfigError(
            f"{asked} over {where}: tensor must divide {each}, as it does not leave a slice"
        )
    outer = math.gcd(data, slices)
    if fsdp % (slices // outer) or (outer < slices and outer < data):
        raise ConfigError(
            f"{asked} over {where}: take data as a multiple or a divisor of {slices}, and fsdp a "
            "multiple of what is left of that"
        )
    return outer, slices // outer, 1


def batch_share(mesh: Mesh) -> tuple[int, int]:
    """(index, count): this process loads part `index` of each batch that is cut into `count`."""
    return share_of(mesh.devices, jax.process_index())


def share_of(devices: np.ndarray, process: int) -> tuple[int, int]:
    """The rows of a batch that a process holds, as (index, count): part `index` of `count`.

    Processes that hold the same rows, where tensor goes over several of them, have one index.

    Args:
        devices: from `arrange`.
        process: its index.

    Raises:
        ConfigError: the rows of some process are no such part.
    """
    ways = devices.shape[0] * devices.shape[1]
    held: dict[int, set[int]] = {}
    for row, group in enumerate(devices.reshape(ways, -1)):
        for device in group:
            held.setdefault(device.process_index, set()).add(row)
    size = len(held.get(process, {0}))
    parts = [min(held[owner]) // size for owner in sorted(held)]
    if parts != sorted(parts) or any(
        rows != set(range(part * size, (part + 1) * size))
        for part, (_, rows) in zip(parts, sorted(held.items()), strict=True)
    ):
        sizes = dict(zip(AXES, devices.shape, strict=True))
        raise ConfigError(
            f"config.mesh: {sizes} gives processes unequal or overlapping parts of a batch; take "
            "tensor as a divisor or a multiple of the devices of a process"
        )
    return min(held.get(process, {0})) // size, ways // size


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the leading axis of every array of a batch over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def batch_ways(mesh: Mesh) -> int:
    """Into how many parts `batch_sharding` splits a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(abstract, mesh: Mesh):
    """Sharding of every leaf of a train state (or of parameters), by its path and shape.

    The rules (`training.partition`) look at the end of the path, which is the parameter's: it, its
    moments and its averages lie alike.

    Args:
        abstract: pytree of arrays or `jax.ShapeDtypeStruct`.
        mesh: from `make_mesh`.
    """
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]

    def place(path, leaf):
        return NamedSharding(
            mesh, partition.spec(partition.name(path), np.shape(leaf), fsdp, tensor)
        )

    return jax.tree_util.tree_map_with_path(place, abstract)


def with_sharding(abstract, sharding):
    """The same abstract tree, each leaf carrying its sharding (what a restore is told)."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        abstract,
        sharding,
    )
