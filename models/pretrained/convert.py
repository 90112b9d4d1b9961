"""Reading safetensors, and carrying PyTorch's tensors over into a dict of parameters."""

import json
import os
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from models.functional import Network, Params

# Module path in our parameters ► name of the module in the file; several are put side by side.
Names = Mapping[str, str | tuple[str, ...]]

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file by name, as float32.

    The format is eight bytes of header length, a JSON header with type, shape and byte range of
    each tensor, then the bytes. A type that is no float raises ValueError.
    """
    data = np.memmap(path, np.uint8, "r")
    start = 8 + int(data[:8].view("<u8")[0])
    header = json.loads(data[8:start].tobytes())
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{path}: {name} is {entry['dtype']}; can read {', '.join(_DTYPES)}")
        first, last = entry["data_offsets"]
        raw = data[start + first : start + last].view(_DTYPES[entry["dtype"]])
        tensors[name] = raw.reshape(entry["shape"]).astype(np.float32)
    return tensors


def fill(network: Network, tensors: Mapping[str, np.ndarray], names: Names) -> Params:
    """Parameters of `network`, taken from `tensors` by `names`.

    Every parameter must be found with its shape and every tensor used; otherwise ValueError lists
    all names that are not.
    """
    unused, problems = set(tensors), []

    def take(path, leaf):
        module, _, kind = "/".join(key.key for key in path).rpartition("/")
        sources = names.get(module, ())
        sources = (sources,) if isinstance(sources, str) else sources
        keys = [f"{source}.{_LEAVES[kind]}" for source in sources]
        lacking = [key for key in keys if key not in tensors]
        if lacking or not keys:
            problems.append(f"no tensor {', '.join(lacking)} for {module}/{kind} {leaf.shape}")
            return leaf
        unused.difference_update(keys)
        value = np.concatenate([_layout(tensors[key], kind) for key in keys], axis=-1)
        if value.ndim > leaf.ndim:  # 1x1 convolutions are dense layers here
            value = value.reshape([n for n in value.shape[:-2] if n != 1] + [*value.shape[-2:]])
        if value.shape != leaf.shape:
            problems.append(f"{', '.join(keys)} has {value.shape} for {module}/{kind} {leaf.shape}")
        return value

    shapes = jax.eval_shape(network.init, jax.random.key(0))
    params = jax.tree_util.tree_map_with_path(take, shapes)
    problems += [f"tensor {key} {tensors[key].shape} has no place" for key in sorted(unused)]
    if problems:
        raise ValueError("the weights do not fit the config:\n  " + "\n  ".join(problems))
    return params


def _layout(tensor: np.ndarray, kind: str) -> np.ndarray:
    """(out, in, *window) of PyTorch to (*window, in, out)."""
    return np.moveaxis(tensor, (0, 1), (-1, -2)) if kind == "kernel" else tensor
