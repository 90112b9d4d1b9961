"""Reading safetensors, and carrying PyTorch's tensors over into a dict of parameters."""

import os
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from models.functional import Network, Params

# Module path in our parameters ► name of the module in the file; several are put side by side.
Names = Mapping[str, str | tuple[str, ...]]

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "bias": "bias",
    # EDM's and EDM2's.
    "frequencies": "freqs",
    "phases": "phases",
    "gain": "emb_gain",
    "gain_out": "out_gain",
    # ADM's classifier.
    "positions": "positional_embedding",
    # CLIP's.
    "class_token": "class_embedding",
    "log_scale": "logit_scale",
    # The prior's.
    "query": "prd_embedding",
    # The decoder's.
    "null_image": "learned_classifier_free_guidance_embeddings",
    # Batch normalization's statistics.
    "mean": "running_mean",
    "variance": "running_var",
}


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file by name, as float32.

    Raises:
        ValueError: a tensor is of no floating type.
    """
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise ValueError(f"{path}: {name} is {tensor.dtype}; a network's weights are floats")
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


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
        parts = [_layout(tensors[key], kind) for key in keys]
        value = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
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


def stack_layers(
    tensors: Mapping[str, np.ndarray], layers: str, stacked: str, depth: int
) -> dict[str, np.ndarray]:
    """Tensors `{layers}{index}.name` put together as `{stacked}name` for `models.functional.stack`.

    What is not there for each of the `depth` layers is left as it is.
    """
    tensors = dict(tensors)
    for name in [name for name in tensors if name.startswith(f"{layers}0.")]:
        rest = name.removeprefix(f"{layers}0.")
        keys = [f"{layers}{index}.{rest}" for index in range(depth)]
        if all(key in tensors for key in keys):
            # Where the window of a convolution would stand, so that it comes first in our layout.
            axis = -1 if tensors[name].ndim == 2 else 0
            tensors[f"{stacked}{rest}"] = np.stack([tensors.pop(key) for key in keys], axis)
    return tensors


def _layout(tensor: np.ndarray, kind: str) -> np.ndarray:
    """(out, in, *window) of PyTorch to (*window, in, out)."""
    return np.moveaxis(tensor, (0, 1), (-1, -2)) if kind == "kernel" else tensor
