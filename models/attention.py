"""Attention over the positions of a feature map, alone or with tokens of a context."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from models.layers import GroupNorm, Linear


class Context(NamedTuple):
    """What a picture is told in tokens, such as a text; a masked token (False) is not seen.

    Masked tokens must be zero: then an image whose tokens are all masked attends to nothing.
    """

    tokens: Float[Array, "batch length context"]
    mask: Bool[Array, "batch length"] | None = None


def attend(
    q: Float[Array, "batch queries heads channels"],
    k: Float[Array, "batch keys heads channels"],
    v: Float[Array, "batch keys heads channels"],
    mask: Bool[Array, "batch keys"] | None = None,
    *,
    implementation: str,
) -> Float[Array, "batch queries heads channels"]:
    """softmax(q k / sqrt(channels)) v, the softmax in float32; keys with False are left out.

    implementation: 'xla' or 'cudnn'. With a mask it is XLA's always: cuDNN would need one score
        for each query and key, and refuses to train with an odd number of either.
    """
    masks = None if mask is None else mask[:, None, None, :]
    implementation = implementation if mask is None else "xla"
    return jax.nn.dot_product_attention(q, k, v, mask=masks, implementation=implementation)


class SelfAttention(nnx.Module):
    """x + projection(attention(norm(x))); softmax in float32 (Ho et al., 2020, appendix B).

    context_dim > 0: keys and values of a context's tokens stand before those of the image, by a
        linear layer of their own (GLIDE, Nichol et al., 2022; DALL-E 2, Ramesh et al., 2022).

    The output axis of `qkv` is (q | k | v, head, channel of head), that of `context` (k | v, ...).
    The projection starts at zero, so at initialization the block is the identity.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        norm_groups: int,
        norm_eps: float,
        init: str,
        implementation: str,
        dtype: str,
        context_dim: int = 0,
    ):
        self.heads, self.implementation = heads, implementation
        self.norm = GroupNorm(channels, norm_groups, norm_eps)
        self.qkv = Linear(channels, 3 * channels, init=init, dtype=dtype, parts=3)
        self.context = (
            Linear(context_dim, 2 * channels, init=init, dtype=dtype, parts=2)
            if context_dim
            else None
        )
        self.projection = Linear(channels, channels, init=init, dtype=dtype, zero=True)

    def __call__(
        self, x: Float[Array, "batch height width channels"], context: Context | None = None
    ) -> Float[Array, "batch height width channels"]:
        """Every position attends to every position of the same image, and to its context."""
        batch, height, width, channels = x.shape
        qkv = self.qkv(self.norm(x))
        qkv = qkv.reshape(batch, height * width, 3, self.heads, channels // self.heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        mask = None
        if self.context is not None:
            kv = self.context(context.tokens)
            kv = kv.reshape(batch, -1, 2, self.heads, channels // self.heads)
            k = jnp.concatenate([kv[:, :, 0], k], axis=1)
            v = jnp.concatenate([kv[:, :, 1], v], axis=1)
            if context.mask is not None:
                mask = jnp.pad(context.mask, ((0, 0), (0, height * width)), constant_values=True)
        out = attend(q, k, v, mask, implementation=self.implementation)
        return x + self.projection(out.reshape(x.shape))
