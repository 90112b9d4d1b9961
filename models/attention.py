"""Self-attention over the positions of a feature map."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from models.layers import GroupNorm, Linear


class SelfAttention(nnx.Module):
    """x + projection(attention(norm(x))); softmax in float32 (Ho et al., 2020, appendix B).

    The output axis of `qkv` is (q | k | v, head, channel of head). The projection starts at zero,
    so at initialization the block is the identity.
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
    ):
        self.heads, self.implementation = heads, implementation
        self.norm = GroupNorm(channels, norm_groups, norm_eps)
        self.qkv = Linear(channels, 3 * channels, init=init, dtype=dtype, parts=3)
        self.projection = Linear(channels, channels, init=init, dtype=dtype, zero=True)

    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Every position attends to every position of the same image."""
        batch, height, width, channels = x.shape
        qkv = self.qkv(self.norm(x))
        qkv = qkv.reshape(batch, height * width, 3, self.heads, channels // self.heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        out = jax.nn.dot_product_attention(q, k, v, implementation=self.implementation)
        return x + self.projection(out.reshape(x.shape))
