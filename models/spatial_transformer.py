"""Transformer blocks over a feature map that cross-attend to a context (latent diffusion)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from models.attention import Context, attend
from models.layers import GroupNorm, Linear

Tokens = Float[Array, "batch length channels"]


class SpatialTransformer(nnx.Module):
    """x + out(blocks(in(norm(x)))), positions as tokens (Rombach et al., 2022, section 3.3).

    The layers in and out are 1x1 convolutions, which are linear layers. The last starts at zero,
    so at initialization the block is the identity. eps of its norm is 1e-6 whatever the rest has.
    """

    def __init__(
        self,
        channels: int,
        *,
        depth: int,
        heads: int,
        context_dim: int,
        norm_groups: int,
        init: str,
        implementation: str,
        dtype: str,
    ):
        settings = {"init": init, "dtype": dtype}
        self.norm = GroupNorm(channels, norm_groups, eps=1e-6)
        self.projection_in = Linear(channels, channels, **settings)
        self.blocks = nnx.List(
            [
                TransformerBlock(channels, heads, context_dim, implementation, **settings)
                for _ in range(depth)
            ]
        )
        self.projection_out = Linear(channels, channels, zero=True, **settings)

    def __call__(
        self, x: Float[Array, "batch height width channels"], context: Context
    ) -> Float[Array, "batch height width channels"]:
        """Every position attends to those of the same image, then to the tokens of its context."""
        batch, *_, channels = x.shape
        h = self.projection_in(self.norm(x).reshape(batch, -1, channels))
        for block in self.blocks:
            h = block(h, context)
        return x + self.projection_out(h).reshape(x.shape)


class TransformerBlock(nnx.Module):
    """Self-attention, cross-attention, feed-forward; each after a norm, each added to its input."""

    def __init__(
        self, channels: int, heads: int, context_dim: int, implementation: str, **settings: str
    ):
        self.norm1 = LayerNorm(channels)
        self.attention1 = Attention(channels, channels, heads, implementation, **settings)
        self.norm2 = LayerNorm(channels)
        self.attention2 = Attention(channels, context_dim, heads, implementation, **settings)
        self.norm3 = LayerNorm(channels)
        self.feed_forward = FeedForward(channels, **settings)

    def __call__(self, x: Tokens, context: Context) -> Tokens:
        """x are the positions of the image."""
        h = self.norm1(x)
        x += self.attention1(h, Context(h))
        x += self.attention2(self.norm2(x), context)
        return x + self.feed_forward(self.norm3(x))


class Attention(nnx.Module):
    """Queries from x; keys and values, without biases, from a source that may be x itself."""

    def __init__(
        self, channels: int, source_dim: int, heads: int, implementation: str, **settings: str
    ):
        self.heads, self.implementation = heads, implementation
        self.q = Linear(channels, channels, use_bias=False, **settings)
        self.kv = Linear(source_dim, 2 * channels, parts=2, use_bias=False, **settings)
        self.projection = Linear(channels, channels, **settings)

    def __call__(self, x: Tokens, source: Context) -> Tokens:
        """The mask of `source` says which of its tokens are seen."""
        batch, length, channels = x.shape
        q = self.q(x).reshape(batch, length, self.heads, -1)
        kv = self.kv(source.tokens).reshape(batch, -1, 2, self.heads, channels // self.heads)
        k, v = kv[:, :, 0], kv[:, :, 1]
        out = attend(q, k, v, source.mask, implementation=self.implementation)
        return self.projection(out.reshape(x.shape))


class FeedForward(nnx.Module):
    """Two linear layers about a gated GELU of four times the width (GEGLU; Shazeer, 2020)."""

    def __init__(self, channels: int, **settings: str):
        self.linear1 = Linear(channels, 8 * channels, **settings)
        self.linear2 = Linear(4 * channels, channels, **settings)

    def __call__(self, x: Tokens) -> Tokens:
        """The output axis of `linear1` is (value | gate)."""
        value, gate = jnp.split(self.linear1(x), 2, axis=-1)
        return self.linear2(value * jax.nn.gelu(gate, approximate=False))


class LayerNorm(nnx.Module):
    """Layer normalization over the channels (Ba et al., 2016), eps 1e-5, statistics in float32."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Tokens) -> Tokens:
        """The type of x stays."""
        exact = x.astype(jnp.float32)
        centered = exact - exact.mean(-1, keepdims=True)
        variance = jnp.square(centered).mean(-1, keepdims=True)
        normal = centered * jax.lax.rsqrt(variance + 1e-5)
        return (normal * self.scale[...] + self.bias[...]).astype(x.dtype)
