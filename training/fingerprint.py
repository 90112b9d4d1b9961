"""One number for the bits of an array, the same however the array is split over devices.

Kept in a checkpoint for each array and compared when it is read: it tells a damaged file, and a
value that went to the wrong place, from what was saved.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from training import partition

# Up to this many elements of an array in the host's memory, NumPy is quicker than a compilation.
_SMALL = 1 << 20


def fingerprints(tree: Any) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """(dtype, shape, fingerprint) of every array of a tree, by its path 'a/b/c'.

    All processes of a run have to call it, with the same tree.
    """
    leaves = {partition.name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
    raw = {name: raw_bits(leaf) for name, leaf in leaves.items()}
    found = {name: of_host(np.asarray(x)) for name, x in raw.items() if _on_host(x)}
    rest = {name: x for name, x in raw.items() if name not in found}
    found |= jax.device_get(_of_devices(rest))
    return {name: (*kind(leaf), int(found[name])) for name, leaf in leaves.items()}


def _on_host(raw: jax.Array) -> bool:
    return raw.is_fully_addressable and raw.platform() == "cpu" and raw.size <= _SMALL


def kind(leaf: Any) -> tuple[str, tuple[int, ...]]:
    """(dtype, shape) of an array or of its abstract form; a typed key counts as one element."""
    return str(leaf.dtype), tuple(leaf.shape)


def raw_bits(leaf: jax.Array) -> jax.Array:
    """The array itself, or the numbers of typed keys."""
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def of_host(array: np.ndarray) -> np.uint32:
    """The fingerprint, by NumPy."""
    width = min(array.dtype.itemsize, 4)
    words = np.ascontiguousarray(array).reshape(-1).view(f"u{width}").astype(np.uint32)
    with np.errstate(over="ignore"):
        mixed = _mix(words, np.arange(words.size, dtype=np.uint32), np.uint32)
    return np.add.reduce(mixed, dtype=np.uint32)


@jax.jit
def of_device(array: jax.Array) -> jax.Array:
    """The same where the array lies: each device sums over its part."""
    if array.dtype == bool:
        array = array.astype(jnp.uint8)
    width = min(array.dtype.itemsize, 4)
    words = jax.lax.bitcast_convert_type(array, jnp.dtype(f"u{width}")).astype(jnp.uint32)
    index = jnp.zeros(words.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):
        position = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        index += position * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.sum(_mix(words, index, jnp.uint32), dtype=jnp.uint32)


@jax.jit
def _of_devices(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """All in one program: several that wait for other processes may run in any order on a CPU.

    Where that is another order in another process, each waits for the other for ever.
    """
    return {name: of_device(array) for name, array in arrays.items()}


def _mix(words: Any, index: Any, number: type) -> Any:
    """Scrambles each word with its place (the finalizer of MurmurHash3, Appleby 2011)."""
    x = words + index * number(0x9E3779B9)
    x = (x ^ (x >> number(16))) * number(0x85EBCA6B)
    x = (x ^ (x >> number(13))) * number(0xC2B2AE35)
    return x ^ (x >> number(16))
