"""The pre-normalized transformer that CLIP's towers are made of."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from models.functional import normal
from models.layers import Linear

ACTIVATIONS = {
    # The sigmoid stands for the normal distribution function (Hendrycks and Gimpel 2016).
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}
Tokens = Float[Array, "batch tokens width"]


class LayerNorm(nnx.Module):
    """Layer normalization over the last axis (Ba et al., 2016); statistics float32."""

    def __init__(self, width: int, eps: float = 1e-5):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Float[Array, "*axes width"]) -> Float[Array, "*axes width"]:
        """Of the type of x."""
        exact = x.astype(jnp.float32)
        centered = exact - exact.mean(-1, keepdims=True)
        variance = jnp.square(centered).mean(-1, keepdims=True)
        out = centered * jax.lax.rsqrt(variance + self.eps) * self.scale[...] + self.bias[...]
        return out.astype(x.dtype)


class Table(nnx.Module):
    """Learned vectors, one a row; drawn from N(0, std^2)."""

    def __init__(self, rows: int, width: int, std: float):
        self.embedding = normal((rows, width), std)


class LayerScale(nnx.Module):
    """Each channel of a residual branch times a number (Touvron et al., 2021)."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones(width))

    def __call__(self, x: Tokens) -> Tokens:
        """Of the type of x."""
        return x * self.scale[...].astype(x.dtype)


class Attention(nnx.Module):
    """Self-attention; the output axis of `qkv` is (q | k | v, head, channel)."""

    def __init__(
        self, width: int, *, heads: int, depth: int, causal: bool, implementation: str, dtype: str
    ):
        self.heads, self.causal, self.implementation = heads, causal, implementation
        self.qkv = linear(width, 3 * width, width**-0.5, dtype)
        self.projection = linear(width, width, (2 * depth * width) ** -0.5, dtype)

    def __call__(self, x: Tokens) -> Tokens:
        """Softmax in float32. Causal: a token sees itself and those before it."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        out = jax.nn.dot_product_attention(
            qkv[:, :, 0],
            qkv[:, :, 1],
            qkv[:, :, 2],
            is_causal=self.causal,
            implementation=self.implementation,
        )
        return self.projection(out.reshape(x.shape))


class Block(nnx.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); drawn as CLIP's (Radford et al., 2021).

    depth: of the whole transformer; layers that end a residual branch start smaller with it.
    eps: of the norms.
    layer_scale: `LayerScale` at the end of both branches, as in DINOv2.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        inner: int,
        depth: int,
        causal: bool,
        activation: str,
        implementation: str,
        dtype: str,
        eps: float = 1e-5,
        layer_scale: bool = False,
    ):
        self.activation = activation
        self.norm1, self.norm2 = LayerNorm(width, eps), LayerNorm(width, eps)
        self.scale1 = LayerScale(width) if layer_scale else None
        self.scale2 = LayerScale(width) if layer_scale else None
        self.attention = Attention(
            width,
            heads=heads,
            depth=depth,
            causal=causal,
            implementation=implementation,
            dtype=dtype,
        )
        self.mlp1 = linear(width, inner, (2 * width) ** -0.5, dtype)
        self.mlp2 = linear(inner, width, (2 * depth * width) ** -0.5, dtype)

    def __call__(self, x: Tokens) -> Tokens:
        """The residual stream is of the type of x."""
        branch = self.attention(self.norm1(x))
        x = x + (self.scale1(branch) if self.scale1 else branch)
        branch = self.mlp2(ACTIVATIONS[self.activation](self.mlp1(self.norm2(x))))
        return x + (self.scale2(branch) if self.scale2 else branch)


def linear(inputs: int, outputs: int, std: float, dtype: str, use_bias: bool = True) -> Linear:
    """A dense layer drawn from N(0, std^2), its bias zero."""
    layer = Linear(inputs, outputs, init="ddpm", dtype=dtype, use_bias=use_bias)
    layer.kernel = normal(layer.kernel.shape, std)
    return layer
