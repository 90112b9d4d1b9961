"""CLIP: an image tower and a text tower with one embedding space (Radford et al., 2021)."""

import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from models.functional import Network, functional, normal, scan, stack
from models.settings import Settings
from models.transformer import ACTIVATIONS, Block, LayerNorm, Table, linear

# Largest scale of the logits of a softmax (Radford et al., section 2.5).
MAX_LOG_SCALE = math.log(100.0)


@dataclasses.dataclass(frozen=True)
class CLIPConfig(Settings):
    """What a CLIP is; from `embedding_dim` on its fields are those of `clip` in configs/networks.

    out_channels is the width of the embeddings, embedding_dim, by the name that all networks share.
    Fields that cannot go together raise ValueError.
    """

    in_channels: int
    out_channels: int
    image_size: int
    embedding_dim: int = 768
    patch_size: int = 14
    image_width: int = 1024
    image_depth: int = 24
    image_heads: int = 16
    image_mlp_ratio: float = 4.0
    vocab_size: int = 49408
    context_length: int = 77
    text_width: int = 768
    text_depth: int = 12
    text_heads: int = 12
    text_mlp_ratio: float = 4.0
    activation: str = "quick_gelu"
    end_token: int = -1
    logit_bias: bool = False
    attention: str = "xla"
    remat: bool = False
    dtype: str = "float32"
    num_classes: ClassVar[int] = 0
    null_class: ClassVar[bool] = False

    def __post_init__(self):
        self._check_common()
        self._positive("in_channels", "image_size", "embedding_dim", "patch_size", "vocab_size")
        for tower in ("image", "text"):
            names = [f"{tower}_{part}" for part in ("width", "depth", "heads", "mlp_ratio")]
            self._positive(*names)
            width = getattr(self, names[0])
            split = width % getattr(self, names[2]) == 0
            self._require(names[2], split, f"must divide {names[0]}={width}")
        same = self.out_channels == self.embedding_dim
        self._require("out_channels", same, f"must be embedding_dim={self.embedding_dim}")
        whole = self.image_size % self.patch_size == 0
        self._require("patch_size", whole, f"must divide image_size={self.image_size}")
        self._require("context_length", self.context_length > 1, "a text has a start and an end")
        self._choose("activation", tuple(ACTIVATIONS))
        there = -1 <= self.end_token < self.vocab_size
        self._require("end_token", there, f"must be -1 or one of vocab_size={self.vocab_size}")


class CLIPOutput(NamedTuple):
    """What `CLIP` gives, all float32; embeddings are not normalized.

    image_embedding, text_embedding: projected, [batch, embedding_dim]; None of what was not given.
    text_features: of each token after the last norm, [batch, context, text_width].
    scale, bias: of the logits; bias None without SigLIP's.
    """

    image_embedding: Float[Array, "batch embedding"] | None
    text_embedding: Float[Array, "batch embedding"] | None
    text_features: Float[Array, "batch context width"] | None
    scale: Float[Array, ""]
    bias: Float[Array, ""] | None


def end_position(
    tokens: Int[Array | np.ndarray, "batch context"], end_token: int
) -> Int[Array | np.ndarray, " batch"]:
    """Where each text ends by `CLIPConfig.end_token`: the first of several such tokens.

    Of a text without one this is its first token.
    """
    return (tokens if end_token < 0 else tokens == end_token).argmax(-1)


class ImageTower(nnx.Module):
    """A vision transformer (Dosovitskiy et al., 2020) whose class token is the image."""

    def __init__(self, config: CLIPConfig):
        self.config = config
        width, area = config.image_width, config.patch_size**2 * config.in_channels
        count = (config.image_size // config.patch_size) ** 2 + 1
        self.patches = linear(area, width, area**-0.5, config.dtype, use_bias=False)
        self.class_token = normal((width,), width**-0.5)
        self.positions = Table(count, width, width**-0.5)
        self.norm_pre, self.norm_post = LayerNorm(width), LayerNorm(width)
        self.blocks = _blocks(config, "image", causal=False)

    def __call__(
        self, image: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch image_width"]:
        """image: in the range that it was trained on, for tasks of this project [-1, 1]."""
        config = self.config
        side, size = config.image_size // config.patch_size, config.patch_size
        x = image.reshape(-1, side, size, side, size, config.in_channels)
        x = self.patches(x.swapaxes(2, 3).reshape(len(image), side**2, -1))
        first = jnp.broadcast_to(self.class_token[...], (len(image), 1, config.image_width))
        x = jnp.concatenate([first.astype(x.dtype), x], axis=1)
        x = self.norm_pre(x + self.positions.embedding[...].astype(x.dtype))
        x = scan(self.blocks, x, remat=config.remat)
        return self.norm_post(x[:, 0].astype(jnp.float32))


class TextTower(nnx.Module):
    """A causal transformer over tokens, whose end token is the text.

    Tokens after the end are masked by causality alone, as in OpenAI's CLIP: they do not reach the
    embedding, but have features of their own.
    """

    def __init__(self, config: CLIPConfig):
        self.config = config
        self.tokens = Table(config.vocab_size, config.text_width, 0.02)
        self.positions = Table(config.context_length, config.text_width, 0.01)
        self.blocks = _blocks(config, "text", causal=True)
        self.norm = LayerNorm(config.text_width)

    def __call__(
        self, tokens: Int[Array, "batch context"]
    ) -> tuple[Float[Array, "batch context text_width"], Float[Array, "batch text_width"]]:
        """(features of all tokens, those of the end token). An id beyond the table gives NaN."""
        config = self.config
        x = jnp.take(self.tokens.embedding[...], tokens, axis=0, mode="fill")
        x = (x + self.positions.embedding[...]).astype(config.dtype)
        features = self.norm(scan(self.blocks, x, remat=config.remat).astype(jnp.float32))
        end = end_position(tokens, config.end_token)
        return features, jnp.take_along_axis(features, end[:, None, None], axis=1)[:, 0]


class Similarity(nnx.Module):
    """Scale and (SigLIP, Zhai et al. 2023) bias of the logits."""

    def __init__(self, config: CLIPConfig):
        biased = config.logit_bias
        self.log_scale = nnx.Param(jnp.float32(math.log(10.0 if biased else 1 / 0.07)))
        self.bias = nnx.Param(jnp.float32(-10.0)) if biased else None

    def __call__(self) -> tuple[Float[Array, ""], Float[Array, ""] | None]:
        """(scale, without a bias at most 100; bias)."""
        if self.bias is None:
            return jnp.exp(_at_most(self.log_scale[...])), None
        # SigLIP sets no limit, and published ones end beyond 100.
        return jnp.exp(self.log_scale[...]), self.bias[...]


class CLIP(nnx.Module):
    """Both towers; of either input alone it computes that tower only."""

    def __init__(self, config: CLIPConfig):
        self.config = config
        self.image, self.text = ImageTower(config), TextTower(config)
        for name, width in (("image", config.image_width), ("text", config.text_width)):
            layer = linear(width, config.embedding_dim, width**-0.5, "float32", use_bias=False)
            setattr(self, f"{name}_projection", layer)
        self.similarity = Similarity(config)

    def __call__(
        self,
        image: Float[Array, "batch height width channels"] | None = None,
        tokens: Int[Array, "batch2 context"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> CLIPOutput:
        """rngs: not used; CLIP has no dropout."""
        image_embedding = text_embedding = features = None
        if image is not None:
            image_embedding = self.image_projection(self.image(image))
        if tokens is not None:
            features, pooled = self.text(tokens)
            text_embedding = self.text_projection(pooled)
        return CLIPOutput(image_embedding, text_embedding, features, *self.similarity())


def make_clip(config: CLIPConfig) -> Network:
    """The CLIP of `config` as pure functions."""
    return functional(lambda rngs: CLIP(config))


def make_text_tower(config: CLIPConfig) -> Network:
    """Its text tower alone, as text encoders of latent diffusion are published."""
    return functional(lambda rngs: TextTower(config))


def _blocks(config: CLIPConfig, tower: str, causal: bool) -> nnx.Module:
    width, depth = getattr(config, f"{tower}_width"), getattr(config, f"{tower}_depth")
    block = lambda: Block(  # noqa: E731
        width,
        heads=getattr(config, f"{tower}_heads"),
        inner=round(width * getattr(config, f"{tower}_mlp_ratio")),
        depth=depth,
        causal=causal,
        activation=config.activation,
        implementation=config.attention,
        dtype=config.dtype,
    )
    return stack(block, depth)


@jax.custom_vjp
def _at_most(log_scale: Float[Array, ""]) -> Float[Array, ""]:
    """The smaller of it and MAX_LOG_SCALE.

    Above that the gradient passes where descent comes back: that of a plain minimum is zero there,
    and the scale would never fall again.
    """
    return jnp.minimum(log_scale, MAX_LOG_SCALE)


def _at_most_forward(log_scale):
    return _at_most(log_scale), log_scale


def _at_most_backward(log_scale, slope):
    return (jnp.where((log_scale < MAX_LOG_SCALE) | (slope > 0), slope, 0.0),)


_at_most.defvjp(_at_most_forward, _at_most_backward)
