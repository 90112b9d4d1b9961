"""Priors without noise: the image embedding as a function of the text embedding."""

import dataclasses

import jax
from flax import nnx
from jaxtyping import Array, Float, PyTree

from models.functional import Network, functional, scan, stack
from models.settings import Settings
from models.transformer import LayerNorm, linear


@dataclasses.dataclass(frozen=True)
class LinearPriorConfig(Settings):
    """The field is that of `linear_prior` in configs/networks.py."""

    embedding_dim: int = 1024
    dtype: str = "float32"

    def __post_init__(self):
        self._positive("embedding_dim")
        self._choose("dtype", ("float32", "bfloat16"))


class LinearPrior(nnx.Module):
    """A linear layer (the linear mapping of Kandinsky, Razzhigaev et al. 2023)."""

    def __init__(self, config: LinearPriorConfig):
        dim = config.embedding_dim
        self.out = linear(dim, dim, dim**-0.5, config.dtype)

    def __call__(
        self, condition: dict[str, PyTree], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch dim"]:
        """condition: 'text_embedding' [batch, dim]; float32."""
        return self.out(condition["text_embedding"]).astype("float32")


@dataclasses.dataclass(frozen=True)
class MLPPriorConfig(Settings):
    """The fields are those of `mlp_prior` in configs/networks.py."""

    embedding_dim: int = 1024
    width: int = 2048
    depth: int = 4
    dtype: str = "float32"

    def __post_init__(self):
        self._positive("embedding_dim", "width", "depth")
        self._choose("dtype", ("float32", "bfloat16"))


class _Residual(nnx.Module):
    """x + mlp(norm(x))."""

    def __init__(self, width: int, depth: int, dtype: str):
        self.norm = LayerNorm(width)
        self.mlp1 = linear(width, 4 * width, (2 * width) ** -0.5, dtype)
        self.mlp2 = linear(4 * width, width, (2 * depth * width) ** -0.5, dtype)

    def __call__(self, x: Float[Array, "batch width"]) -> Float[Array, "batch width"]:
        return x + self.mlp2(jax.nn.gelu(self.mlp1(self.norm(x)), approximate=False))


class MLPPrior(nnx.Module):
    """Residual blocks between two linear layers: the ResNet prior of Kandinsky, with layer norm.

    With the projection and contrastive losses of ECLIPSE (Patel et al. 2023, section 3) it is that
    paper's objective on a smaller network.
    """

    def __init__(self, config: MLPPriorConfig):
        dim, width, depth, dtype = (
            config.embedding_dim,
            config.width,
            config.depth,
            config.dtype,
        )
        self.embedding = linear(dim, width, dim**-0.5, dtype)
        self.blocks = stack(lambda: _Residual(width, depth, dtype), depth)
        self.norm = LayerNorm(width)
        self.out = linear(width, dim, width**-0.5, "float32")

    def __call__(
        self, condition: dict[str, PyTree], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch dim"]:
        """condition: 'text_embedding' [batch, dim]; float32."""
        x = scan(self.blocks, self.embedding(condition["text_embedding"]))
        return self.out(self.norm(x))


def make_linear_prior(config: LinearPriorConfig) -> Network:
    """The linear prior of `config` as pure functions."""
    return functional(lambda rngs: LinearPrior(config))


def make_mlp_prior(config: MLPPriorConfig) -> Network:
    """The MLP prior of `config` as pure functions."""
    return functional(lambda rngs: MLPPrior(config))
