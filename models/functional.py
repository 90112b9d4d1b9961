"""A module as two plain functions of a dict: all contact with NNX's split and merge is here."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

Params = dict[str, Any]
Path = tuple[str | int, ...]


class Network(NamedTuple):
    """A network as pure functions, for plain `jax.jit`, `jax.grad` and `jax.eval_shape`.

    init: `init(key) -> params`, a nested dict with str keys of arrays.
    apply: `apply(params, *args, dropout_key=None, **kwargs)`; without a dropout key the call is
        deterministic, with one the module receives `rngs=nnx.Rngs(dropout=dropout_key)`.
    """

    init: Callable[..., Params]
    apply: Callable[..., Any]


def functional(build: Callable[[nnx.Rngs], nnx.Module]) -> Network:
    """Functions of the module that `build` makes.

    All state of the module must be `nnx.Param`; a module that holds anything else (running
    statistics, a random stream) raises TypeError with the path of it.
    """

    @functools.cache
    def skeleton() -> tuple[Any, jax.tree_util.PyTreeDef, list[Path]]:
        """What is not an array: graph definition, structure of params, NNX's path of each leaf."""
        graphdef, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
        tree = _nested({path: path for path, _ in nnx.to_flat_state(state)})
        paths, treedef = jax.tree.flatten(tree, is_leaf=lambda node: isinstance(node, tuple))
        return graphdef, treedef, paths

    def init(key: jax.Array) -> Params:
        build_key, uniform_key = jax.random.split(key)
        leaves = dict(nnx.to_flat_state(nnx.state(build(nnx.Rngs(build_key)))))
        values = {path: _value(path, leaf) for path, leaf in leaves.items()}
        bounds = {path: leaf.get_metadata().get("uniform") for path, leaf in leaves.items()}
        return _nested(values | _draw(uniform_key, values, bounds))

    def apply(params: Params, *args, dropout_key: jax.Array | None = None, **kwargs):
        graphdef, treedef, paths = skeleton()
        values = treedef.flatten_up_to(params)
        module = nnx.merge(graphdef, nnx.from_flat_state(list(zip(paths, values, strict=True))))
        if dropout_key is not None:
            kwargs["rngs"] = nnx.Rngs(dropout=dropout_key)
        return module(*args, **kwargs)

    return Network(init, apply)


def uniform(shape: tuple[int, ...], bound: float) -> nnx.Param:
    """A float32 parameter that `Network.init` draws from U(-bound, bound); until then it is zero.

    A generator for each of a U-Net's hundreds of parameters takes XLA half a minute to compile.
    These are slices of one draw.
    """
    return nnx.Param(jnp.zeros(shape), uniform=bound)


def count_parameters(params: Params) -> int:
    """Number of scalars in `params` (arrays, or the shapes that `jax.eval_shape` gives)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _value(path: Path, leaf: nnx.Variable) -> jax.Array:
    if not isinstance(leaf, nnx.Param):
        name = "/".join(map(str, path))
        raise TypeError(f"{name} is {type(leaf).__name__}: a network may hold nnx.Param only")
    return leaf.get_value()


def _draw(key: jax.Array, values: dict[Path, jax.Array], bounds: dict[Path, float | None]):
    drawn = {path: values[path] for path, bound in bounds.items() if bound is not None}
    total = sum(value.size for value in drawn.values())
    # The barrier keeps XLA from running the generator again inside every slice.
    noise = jax.lax.optimization_barrier(jax.random.uniform(key, (total,), minval=-1, maxval=1))
    start = 0
    for path, value in drawn.items():
        part = noise[start : start + value.size]
        drawn[path] = bounds[path] * part.reshape(value.shape)
        start += value.size
    return drawn


def _nested(flat: Mapping[Path, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(str(part), {})
        node[str(path[-1])] = value
    return tree
