"""DiT, the diffusion transformer with adaLN-zero conditioning (Peebles and Xie, 2023)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Num, PyTree

from models.attention import replace_rows
from models.embeddings import sinusoidal
from models.functional import Network, functional, normal, scan, stack
from models.layers import Linear
from models.scalars import Scalars
from models.settings import Settings

Tokens = Float[Array, "batch tokens hidden"]
# Sines and cosines that time is told by.
_TIME_CHANNELS = 256
_NORM_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class DiTConfig(Settings):
    """What a DiT is. The fields from `patch_size` on are those of `dit` in configs/networks.py.

    Fields that cannot go together raise ValueError.
    """

    in_channels: int
    out_channels: int
    image_size: int
    patch_size: int = 2
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    positions: str = "sincos"
    num_classes: int = 1000
    null_class: bool = True
    embedding_dim: int = 0
    attention: str = "xla"
    remat: bool = False
    dtype: str = "float32"
    # Numbers of the condition that are told beside time; the task's, no field of a config.
    scalars: tuple[str, ...] = ()

    @property
    def side(self) -> int:
        """Patches along each side of the image."""
        return self.image_size // self.patch_size

    def __post_init__(self):
        self._check_common()
        self._positive("in_channels", "out_channels", "image_size", "patch_size", "hidden_size")
        self._positive("depth", "num_heads", "mlp_ratio")
        self._choose("positions", ("sincos", "learned"))
        self._require("embedding_dim", self.embedding_dim >= 0, "must not be negative")
        whole = self.image_size % self.patch_size == 0
        self._require("patch_size", whole, f"must divide image_size={self.image_size}")
        # Sines and cosines of row and column, a quarter each.
        self._require("hidden_size", self.hidden_size % 4 == 0, "must be a multiple of 4")
        split = self.hidden_size % self.num_heads == 0
        self._require("num_heads", split, f"must divide hidden_size={self.hidden_size}")


class Attention(nnx.Module):
    """Self-attention over the tokens; the output axis of `qkv` is (q | k | v, head, channel)."""

    def __init__(self, config: DiTConfig):
        self.config = config
        width = config.hidden_size
        self.qkv = Linear(width, 3 * width, init="ddpm", dtype=config.dtype)
        self.projection = Linear(width, width, init="ddpm", dtype=config.dtype)

    def __call__(self, x: Tokens, identity: Bool[Array, " batch"] | None = None) -> Tokens:
        """Softmax in float32. identity: see `models.attention.replace_rows`."""
        batch, tokens, width = x.shape
        heads = self.config.num_heads
        qkv = self.qkv(x).reshape(batch, tokens, 3, heads, width // heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        out = jax.nn.dot_product_attention(q, k, v, implementation=self.config.attention)
        if identity is not None:
            out = replace_rows(out, v, identity)
        return self.projection(out.reshape(x.shape))


class Block(nnx.Module):
    """Attention and MLP on normalized tokens, each shifted, scaled and gated by the condition.

    The condition's layer starts at zero, so at initialization the gates are closed and the block
    is the identity (adaLN-zero, section 3.2). All other layers start Xavier uniform with bias zero,
    which `layers.parameters` calls 'ddpm'.
    """

    def __init__(self, config: DiTConfig):
        width, inner = config.hidden_size, int(config.hidden_size * config.mlp_ratio)
        settings = {"init": "ddpm", "dtype": config.dtype}
        self.modulation = Linear(width, 6 * width, zero=True, **settings)
        self.attention = Attention(config)
        self.mlp1 = Linear(width, inner, **settings)
        self.mlp2 = Linear(inner, width, **settings)

    def __call__(
        self,
        x: Tokens,
        condition: Float[Array, "batch hidden"],
        identity: Bool[Array, " batch"] | None = None,
    ) -> Tokens:
        """`condition` is the embedding of time and label after its SiLU."""
        parts = jnp.split(self.modulation(condition)[:, None], 6, axis=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        x = x + gate1 * self.attention(_modulated_norm(x, shift1, scale1), identity)
        hidden = jax.nn.gelu(self.mlp1(_modulated_norm(x, shift2, scale2)), approximate=True)
        return x + gate2 * self.mlp2(hidden)


class DiT(nnx.Module):
    """A transformer over the patches of x, told of time and (by config) of a label or a vector.

    The blocks' parameters lie in one tree with a leading axis of length `depth`, and one scan runs
    them: the program that is compiled has one block, whatever the depth.
    """

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        self.config = config
        width, area = config.hidden_size, config.patch_size**2
        # Time, input and output stay float32: few operations, and what is lost is lost for all.
        exact = {"init": "ddpm", "dtype": "float32"}
        self.patches = Linear(area * config.in_channels, width, **exact)
        self.time1 = Linear(_TIME_CHANNELS, width, **exact)
        self.time2 = Linear(width, width, **exact)
        for layer in (self.time1, self.time2):
            layer.kernel = normal(layer.kernel.shape, 0.02)
        rows = config.num_classes + config.null_class
        table = nnx.initializers.normal(0.02)
        self.label = nnx.Embed(rows, width, embedding_init=table, rngs=rngs) if rows else None
        vector = config.embedding_dim
        self.embedding = Linear(vector, width, **exact) if vector else None
        learned = config.positions == "learned"
        self.positions = normal((config.side**2, width), 1.0) if learned else None
        names = config.scalars
        self.scalars = Scalars(names, _TIME_CHANNELS, width) if names else None
        self.blocks = stack(lambda: Block(config), config.depth)
        self.modulation_out = Linear(width, 2 * width, zero=True, **exact)
        self.linear_out = Linear(width, area * config.out_channels, zero=True, **exact)

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        time: Num[Array, " batch"],
        condition: dict[str, PyTree] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch height width channels_out"]:
        """Raw output, float32; what it means is the parameterization's business.

        time: any real number; the integer index of the step for a network that is trained so.
        condition: {'label': int [batch]} if the config has classes, where with null_class the
            label num_classes means "no label"; otherwise None. A label beyond that gives NaN.
            Beside it 'embedding' float [batch, embedding_dim], if the config has that, and each of
            its scalars, float [batch]: they go where time goes. Never required is
            'identity_attention' {block: bool [batch]}: True replaces the attention there, for
            perturbed-attention guidance.
        rngs: not used; a DiT has no dropout.
        """
        config = self.config
        condition = dict(condition or {})
        identity = self._identity(condition.pop("identity_attention", {}), len(x))
        vector = self._vector(condition)
        embedding = self._embed(time, config.label(condition))
        if vector is not None:
            embedding += self.embedding(vector)
        if self.scalars is not None:
            embedding += self.scalars(condition)
        embedding = jax.nn.silu(embedding)
        tokens = self.patches(_patchify(x, config.patch_size))
        if self.positions is not None:
            tokens += self.positions[...]
        else:
            tokens += _sines(config.side, config.hidden_size)
        tokens, told = tokens.astype(config.dtype), embedding.astype(config.dtype)
        tokens = scan(self.blocks, tokens, told, each=identity, remat=config.remat)
        shift, scale = jnp.split(self.modulation_out(embedding)[:, None], 2, axis=-1)
        return _unpatchify(self.linear_out(_modulated_norm(tokens, shift, scale)), config)

    def _identity(self, blocks, batch: int) -> Bool[Array, "depth batch"] | None:
        """The flags of every block; None, as in training, compiles nothing of this."""
        depth = self.config.depth
        if unknown := set(blocks) - set(range(depth)):
            raise ValueError(
                f"condition['identity_attention'] has the blocks {sorted(unknown)}, but this DiT "
                f"has 0 to {depth - 1}"
            )
        off = jnp.zeros(batch, bool)
        return jnp.stack([blocks.get(k, off) for k in range(depth)]) if blocks else None

    def _vector(self, condition: dict) -> Float[Array, "batch embedding"] | None:
        """Takes the embedding out of the condition, where the config has one."""
        dim = self.config.embedding_dim
        if not dim:
            return None
        shape = condition["embedding"].shape if "embedding" in condition else ()
        if shape[1:] != (dim,):
            raise ValueError(
                f"condition['embedding'] has shape {shape}: embedding_dim={dim} makes it [batch, "
                f"{dim}]"
            )
        return condition.pop("embedding")

    def _embed(self, time, label) -> Float[Array, "batch hidden"]:
        embedding = sinusoidal(time, _TIME_CHANNELS, "adm")
        embedding = self.time2(jax.nn.silu(self.time1(embedding)))
        return embedding if label is None else embedding + self.label(label)


def make_dit(config: DiTConfig) -> Network:
    """The DiT of `config` as pure functions."""
    return functional(lambda rngs: DiT(config, rngs=rngs), tuple(range(config.depth)))


def _modulated_norm(x: Tokens, shift: Array, scale: Array) -> Tokens:
    """Layer normalization without parameters, then x * (1 + scale) + shift; float32."""
    x = x.astype(jnp.float32)
    centered = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centered).mean(-1, keepdims=True)
    return centered * jax.lax.rsqrt(variance + _NORM_EPS) * (1 + scale) + shift


def _patchify(x: Float[Array, "batch height width channels"], size: int) -> Tokens:
    """Patches row by row; within one: row, column, channel."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.swapaxes(2, 3).reshape(batch, -1, size * size * channels)


def _unpatchify(x: Tokens, config: DiTConfig) -> Float[Array, "batch height width channels"]:
    """The inverse of `_patchify`."""
    side, size, channels = config.side, config.patch_size, config.out_channels
    x = x.reshape(-1, side, side, size, size, channels).swapaxes(2, 3)
    return x.reshape(-1, side * size, side * size, channels)


def _sines(side: int, channels: int) -> Float[Array, "tokens channels"]:
    """Sines, cosines of the column (first half of the channels), then of the row of each patch."""
    frequencies = 10_000.0 ** (-np.arange(channels // 4) / (channels // 4))
    angle = np.arange(side)[:, None] * frequencies
    waves = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1).astype(np.float32)
    # Spread out by the program, which then holds a constant of side rows instead of side^2.
    grid = (side, side, channels // 2)
    both = jnp.broadcast_to(waves, grid), jnp.broadcast_to(waves[:, None], grid)
    return jnp.concatenate(both, axis=-1).reshape(side**2, channels)
