"""A module as two plain functions of a dict: all contact with NNX's split and merge is here."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

# Stacks up to this depth are scanned without a loop, in which XLA fuses less on a CPU.
_UNROLLED = 4

Params = dict[str, Any]
Path = tuple[str | int, ...]
# (path, shape of the parameter, the parameter or one layer of its stack) -> what the layer gets.
Reader = Callable[[Path, tuple[int, ...], jax.Array], jax.Array]

_READER: contextvars.ContextVar[Reader | None] = contextvars.ContextVar("reader", default=None)


@contextlib.contextmanager
def read_by(reader: Reader) -> Iterator[None]:
    """Networks that are traced inside get `reader(path, shape, value)` for each parameter.

    It is called where a layer takes its parameter in hand: inside of what is recomputed in the
    backward pass, and inside of the scan over a stack, there with a single layer's part of it. A
    function that is jitted by itself is traced once, and keeps the reader that it then had.
    """
    token = _READER.set(reader)
    try:
        yield
    finally:
        _READER.reset(token)


class _Read(nnx.Param):
    """A parameter that passes through a function each time that it is read."""

    def get_value(self, **kwargs) -> jax.Array:
        return self.get_metadata("reader")(super().get_value(**kwargs))


class Network(NamedTuple):
    """A network as pure functions, for plain `jax.jit`, `jax.grad` and `jax.eval_shape`.

    init: `init(key) -> params`, a nested dict with str keys of arrays.
    apply: `apply(params, *args, dropout_key=None, **kwargs)`; without a dropout key the call is
        deterministic, with one the module receives `rngs=nnx.Rngs(dropout=dropout_key)`.
    attention: where self-attention can be turned into identity for some rows of the batch, by
        `condition["identity_attention"] = {place: bool [batch]}`: resolutions of a U-Net, blocks of
        a DiT.
    """

    init: Callable[..., Params]
    apply: Callable[..., Any]
    attention: tuple[int, ...] = ()


def functional(build: Callable[[nnx.Rngs], nnx.Module], attention: tuple[int, ...] = ()) -> Network:
    """Functions of the module that `build` makes; `attention` is that of `Network`.

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
        normal_key = jax.random.fold_in(uniform_key, 1)
        uniforms = _draw(_uniform, uniform_key, values, _sizes("uniform", leaves))
        normals = _draw(jax.random.normal, normal_key, values, _sizes("normal", leaves))
        return _nested(values | uniforms | normals)

    def apply(params: Params, *args, dropout_key: jax.Array | None = None, **kwargs):
        graphdef, treedef, paths = skeleton()
        values = treedef.flatten_up_to(params)
        if reader := _READER.get():
            values = [
                _Read(value, reader=functools.partial(reader, path, value.shape))
                for path, value in zip(paths, values, strict=True)
            ]
        module = nnx.merge(graphdef, nnx.from_flat_state(list(zip(paths, values, strict=True))))
        if dropout_key is not None:
            kwargs["rngs"] = nnx.Rngs(dropout=dropout_key)
        return module(*args, **kwargs)

    return Network(init, apply, attention)


def uniform(shape: tuple[int, ...], bound: float) -> nnx.Param:
    """A float32 parameter that `Network.init` draws from U(-bound, bound); until then it is zero.

    A generator for each of a U-Net's hundreds of parameters takes XLA half a minute to compile.
    These are slices of one draw.
    """
    return nnx.Param(jnp.zeros(shape), uniform=bound)


def normal(shape: tuple[int, ...], std: float) -> nnx.Param:
    """A float32 parameter that `Network.init` draws from N(0, std^2), all such in one draw too."""
    return nnx.Param(jnp.zeros(shape), normal=std)


def stack(build: Callable[[], nnx.Module], depth: int) -> nnx.Module:
    """A module whose parameters are those of `depth` such modules along a new leading axis.

    The layers of `build` must draw by `uniform` and `normal`, or start at the same value in each.
    """
    graphdef, state = nnx.split(build())

    def repeat(leaf: nnx.Variable) -> nnx.Variable:
        value = leaf.get_value()
        return leaf.replace(jnp.broadcast_to(value, (depth, *value.shape)))

    is_leaf = lambda node: isinstance(node, nnx.Variable)  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(repeat, state, is_leaf=is_leaf))


def scan(
    stacked: nnx.Module, x: jax.Array, *args, each=None, remat: bool = False, emit: bool = False
) -> Any:
    """x through the modules of a `stack` in turn, each called with (x, *args, its part of each).

    each: arrays with a leading axis of length depth, or None.
    remat: activations inside of a module are computed again in the backward pass.
    emit: a module gives (x, what it leaves); given are x and that of all, along a leading axis.
    """
    graphdef, state = nnx.split(stacked)

    def one(x, own):
        params, part = own
        more = () if each is None else (part,)
        out = nnx.merge(graphdef, params)(x, *args, *more)
        return out if emit else (out, None)

    # A loop's body is compiled once: nothing outside of it could be merged with the recomputation.
    function = jax.checkpoint(one, prevent_cse=False) if remat else one
    depth = len(jax.tree.leaves(state)[0])
    unroll = depth if depth <= _UNROLLED and not remat else 1
    out, left = jax.lax.scan(function, x, (state, each), unroll=unroll)
    return (out, left) if emit else out


def count_parameters(params: Params) -> int:
    """Number of scalars in `params` (arrays, or the shapes that `jax.eval_shape` gives)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _value(path: Path, leaf: nnx.Variable) -> jax.Array:
    if not isinstance(leaf, nnx.Param):
        name = "/".join(map(str, path))
        raise TypeError(f"{name} is {type(leaf).__name__}: a network may hold nnx.Param only")
    return leaf.get_value()


def _sizes(kind: str, leaves: Mapping[Path, nnx.Variable]) -> dict[Path, float]:
    """Bound or standard deviation of each parameter that `uniform` or `normal` made."""
    sizes = {path: leaf.get_metadata().get(kind) for path, leaf in leaves.items()}
    return {path: size for path, size in sizes.items() if size is not None}


def _uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, shape, minval=-1, maxval=1)


def _draw(generate, key: jax.Array, values: dict[Path, jax.Array], sizes: dict[Path, float]):
    total = sum(values[path].size for path in sizes)
    # The barrier keeps XLA from running the generator again inside every slice.
    noise = jax.lax.optimization_barrier(generate(key, (total,)))
    drawn, start = {}, 0
    for path, size in sizes.items():
        part = noise[start : start + values[path].size]
        drawn[path] = size * part.reshape(values[path].shape)
        start += values[path].size
    return drawn


def _nested(flat: Mapping[Path, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(str(part), {})
        node[str(path[-1])] = value
    return tree
