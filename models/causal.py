"""Transformer blocks that look back only, with or without a cache of keys and values."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from models.transformer import LayerNorm, Tokens, linear


class KeysValues(NamedTuple):
    """Of one block, for all places of the sequence; those not yet reached are zero."""

    keys: Float[Array, "batch length heads channels"]
    values: Float[Array, "batch length heads channels"]


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): GPT-2's order, with plain heads and GELU.

    The output axis of `qkv` is (q | k | v, head, channel). Kernels start normal with the widths
    of CLIP's text tower (Radford et al. 2021): what is added to the residual stream shrinks with
    the depth.
    """

    def __init__(self, width: int, heads: int, depth: int, dtype: str):
        self.heads = heads
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        added = (2 * depth * width) ** -0.5
        self.qkv = linear(width, 3 * width, width**-0.5, dtype)
        self.projection = linear(width, width, added, dtype)
        self.mlp1 = linear(width, 4 * width, (2 * width) ** -0.5, dtype)
        self.mlp2 = linear(4 * width, width, added, dtype)

    def __call__(
        self,
        x: Tokens,
        mask: Bool[Array, "batch queries keys"],
        position: Int[Array, ""] | int | None = None,
        cache: KeysValues | None = None,
    ) -> Tokens | tuple[Tokens, KeysValues]:
        """mask: which keys each query sees. Softmax in float32.

        With a cache x stands at the places from `position` on: its keys and values are put there,
        queries see all of the cache that the mask lets them, and the new cache is given, too.
        """
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if cache is not None:
            put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, position, 1)  # noqa: E731
            cache = KeysValues(put(cache.keys, k), put(cache.values, v))
            k, v = cache
        attended = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])
        x = x + self.projection(attended.reshape(x.shape))
        x = x + self.mlp2(jax.nn.gelu(self.mlp1(self.norm2(x)), approximate=False))
        return x if cache is None else (x, cache)


def looks_back(
    seen: Bool[Array, "batch length"], queries: int, start: Int[Array, ""] | int = 0
) -> Bool[Array, "batch {queries} length"]:
    """The mask of `queries` tokens at the places from `start` on; seen: keys that are no padding.

    The first key must be one that is seen: a query without any would attend to all alike.
    """
    places = start + jnp.arange(queries)
    causal = jnp.arange(seen.shape[1]) <= places[:, None]
    return causal & seen[:, None]
