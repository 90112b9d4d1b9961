"""The device mesh, and where batches and parameters lie on it."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from training.components import ConfigError

AXES = ("data", "fsdp", "tensor")

# Below this many elements a parameter is kept whole on every device: gathering it would cost more
# in latency than its memory is worth.
MIN_SHARDED_SIZE = 2**14


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Arranges devices as (data, fsdp, tensor); one axis may be -1 and takes what is left.

    Raises:
        ConfigError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = [data, fsdp, tensor]
    asked = f"data={data}, fsdp={fsdp}, tensor={tensor}"
    if sizes.count(-1) > 1:
        raise ConfigError(f"config.mesh: {asked}: at most one axis may be -1 (the rest)")
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % fixed == 0:
        sizes[sizes.index(-1)] = len(devices) // fixed
    if math.prod(sizes) != len(devices):
        raise ConfigError(
            f"config.mesh: {asked} does not arrange {len(devices)} devices; the product of the "
            "axes must be that number (-1 in one axis takes what the others leave)"
        )
    return Mesh(mesh_utils.create_device_mesh(sizes, devices), AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the leading axis of every array of a batch over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def batch_ways(mesh: Mesh) -> int:
    """Into how many parts `batch_sharding` splits a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def _spec(shape: tuple[int, ...], fsdp: int, tensor: int) -> PartitionSpec:
    axes: list[str | None] = [None] * len(shape)
    if math.prod(shape) >= MIN_SHARDED_SIZE:
        if tensor > 1 and shape[-1] % tensor == 0:
            axes[-1] = "tensor"
        divisible = [i for i, n in enumerate(shape) if axes[i] is None and n % fsdp == 0]
        if fsdp > 1 and divisible:
            axes[max(divisible, key=lambda i: shape[i])] = "fsdp"
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def state_sharding(abstract, mesh: Mesh):
    """Sharding of every leaf of a train state (or of parameters), by its shape alone.

    Output features go over tensor, the largest remaining axis over fsdp, where they divide. As the
    rule sees shapes only, a parameter, its Adam moments and its averages lie alike.

    Args:
        abstract: pytree of arrays or `jax.ShapeDtypeStruct`.
        mesh: from `make_mesh`.
    """
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, _spec(np.shape(leaf), fsdp, tensor)), abstract
    )


def with_sharding(abstract, sharding):
    """The same abstract tree, each leaf carrying its sharding (what a restore is told)."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        abstract,
        sharding,
    )
