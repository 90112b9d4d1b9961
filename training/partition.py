"""How parameters lie on the mesh: over tensor by a table of rules, over fsdp by their shape."""

import functools
import math
import re
from collections.abc import Iterable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from models import functional

# A parameter of fewer elements (of a stack: in each layer) is kept whole on every device:
# gathering it would cost more in latency than its memory is worth.
MIN_SHARDED_SIZE = 2**14

# Tensor parallelism (Shoeybi et al. 2019, section 3). Two layers in turn are a pair: the first is
# split by its outputs (columns), what is between them stays where it is made, heads of attention
# or channels, and the second is split by its inputs (rows), so that one sum over devices ends the
# pair. An axis is counted from the last; kernels are [*window, inputs, outputs].
COLUMNS, ROWS = -1, -2
TENSOR_RULES = (
    # Attention: queries, keys and values, those of a context or of another source too; the output.
    (r"(qkv|q|kv|context)/(kernel|bias)", COLUMNS),
    (r"(attention\w*|blocks|pool)/(\d+/)?projection/kernel", ROWS),
    # The MLP of transformers.
    (r"(mlp1|linear1)/(kernel|bias)", COLUMNS),
    (r"(mlp2|linear2)/kernel", ROWS),
    # Residual blocks: the convolutions, and the shift and scale of the channels between them.
    (r"(conv1|condition)/kernel", COLUMNS),
    (r"conv2/kernel", ROWS),
    # What time is told by.
    (r"time1/kernel", COLUMNS),
    (r"time2/kernel", ROWS),
    # Tables that are looked up, by their rows (section 3, the vocabulary); what modulates a
    # residual stream in all blocks of a DiT: large to hold, small to gather.
    (r"tokens/embedding", ROWS),
    (r"modulation/(kernel|bias)", COLUMNS),
)
# Large parameters that are no part of a pair: what they give, or are given, is the residual
# stream, which is whole on every device.
WHOLE_OVER_TENSOR = (
    r"shortcut/kernel",
    r"resample/conv/kernel",
    r"(conv_in|conv_out|patches|linear_out|modulation_out)/kernel",
    r"(projection_in|projection_out|image_projection|text_projection)/kernel",
    r"(time|image|out|embedding|image_tokens|features|label|augment|scalars\w*|pool)/kernel",
    r"(positions|label)/embedding",
    r"positions|codes|dots|null_features",
)

_RULES = tuple((re.compile(rf"(^|/)({pattern})$"), axis) for pattern, axis in TENSOR_RULES)
# A stack of layers that a scan runs; the blocks of a U-Net are numbered.
_STACKED = re.compile(r"(^|/)blocks/(?!\d)")


def name(path: Iterable[Any]) -> str:
    """'encoder/0/conv1/kernel' of a path of keys, as JAX's trees or plain names have it."""
    parts = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path)
    return "/".join(map(str, parts))


def tensor_axis(path: str) -> int | None:
    """The axis of a parameter that lies over tensor, from the last; None: it is whole there.

    path: ends with the parameter's, so that moments and averages of it lie alike.
    """
    return next((axis for pattern, axis in _RULES if pattern.search(path)), None)


def layer_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """That of one layer of a stack which a scan runs; elsewhere the shape itself."""
    return shape[1:] if _STACKED.search(path) else shape


def spec(path: str, shape: tuple[int, ...], fsdp: int, tensor: int) -> PartitionSpec:
    """How one leaf of a state lies: an axis over tensor by the rules, the largest other over fsdp.

    An axis must divide; one that does not is left whole. The axis of a stack is never split, as a
    scan takes one layer after the other.
    """
    axes: list[str | None] = [None] * len(shape)
    layer = layer_shape(path, shape)
    first = len(shape) - len(layer)
    if math.prod(layer) >= MIN_SHARDED_SIZE:
        axis = tensor_axis(path)
        if tensor > 1 and axis is not None and len(shape) + axis >= first:
            axes[axis] = "tensor" if shape[axis] % tensor == 0 else None
        rest = [i for i in range(first, len(shape)) if axes[i] is None and shape[i] % fsdp == 0]
        if fsdp > 1 and rest:
            axes[max(rest, key=lambda i: shape[i])] = "fsdp"
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def reader(mesh: Mesh) -> functional.Reader:
    """For `models.functional.read_by`: parameters are gathered over fsdp where a layer reads them.

    Their gradients go back the way they came: summed over the batch and left where the parameter
    lies (ZeRO's third stage, Rajbhandari et al. 2020). What lies over tensor stays there.
    """

    def read(path: tuple, shape: tuple[int, ...], value: jax.Array) -> jax.Array:
        axes = tuple(spec(name(path), shape, mesh.shape["fsdp"], mesh.shape["tensor"]))
        if not axes:
            return value
        axes += (None,) * (len(shape) - len(axes))
        axes = axes[len(shape) - value.ndim :]
        used = PartitionSpec(*("tensor" if axis == "tensor" else None for axis in axes))
        return _gathered(
            NamedSharding(mesh, PartitionSpec(*axes)), NamedSharding(mesh, used), value
        )

    return read


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gathered(stored: NamedSharding, used: NamedSharding, value: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(value, used)


def _gathered_forward(stored, used, value):
    return _gathered(stored, used, value), None


def _gathered_backward(stored, used, _, gradient):
    # The sum over devices first: bound to `stored` alone, the product that gives the gradient
    # would be split by its features and its operands, activations, sent around.
    summed = jax.lax.with_sharding_constraint(gradient, used)
    return (jax.lax.with_sharding_constraint(summed, stored),)


_gathered.defvjp(_gathered_forward, _gathered_backward)
