"""The decoder of unCLIP: a U-Net told a CLIP image embedding and a caption (Ramesh et al. 2022)."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Num, PyTree, Shaped

from models.caption import NO_TEXT
from models.causal import Block
from models.functional import Network, functional, normal, scan, stack
from models.told_of_clip import Told, ToldOfCLIP
from models.transformer import LayerNorm, Table, linear
from models.unet import UNet
from models.unet_config import UNetConfig

# What a caption is to the context of the U-Net (tokens), and to its embedding of time (a vector).
Read = tuple[Float[Array, "batch context width"], Float[Array, "batch vector"]]
# What the U-Net is told stays float32 up to there: few operations.
_EXACT = "float32"


@dataclasses.dataclass(frozen=True)
class UnCLIPDecoderConfig(ToldOfCLIP, UNetConfig):
    """What a decoder is; the fields are those of `unclip_decoder` in configs/networks.py.

    embedding_dim is that of CLIP. What the U-Net inside is told follows from it and the caption's
    fields, so of its conditions `context` alone is set: how attention reads the tokens, 'kv' (the
    paper) or 'cross'. Fields that cannot go together raise ValueError.
    """

    context: str = "kv"
    embedding_scale: float = 0.0
    image_tokens: int = 4
    text_width: int = 512
    learned_null: bool = False
    context_length: int = 0
    vocab_size: int = 0
    text_depth: int = 0
    text_heads: int = 1
    text_dim: int = 0

    @property
    def unet(self) -> UNetConfig:
        """The U-Net inside. Its vector is the image embedding, with that of the caption after it.

        A linear layer of both is the sum of one of each, as the paper adds them to time.
        """
        text = 0
        if self.caption:
            text = self.embedding_dim if self.text_dim else self.text_width
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(UNetConfig)}
        told = {"context_dim": self.text_width, "embedding_dim": self.embedding_dim + text}
        return UNetConfig(**own | told)

    def __post_init__(self):
        known = self.context in ("kv", "cross")
        self._require("context", known, "must be 'kv' or 'cross': the image is told in tokens")
        super().__post_init__()
        for name in ("num_classes", "null_class", "scalars"):
            self._require(name, not getattr(self, name), "a decoder is told of a CLIP alone")
        for name in ("embedding_dim", "image_tokens", "text_width"):
            self._require(name, getattr(self, name) > 0, "must be positive")
        for name in ("embedding_scale", "context_length", "text_dim"):
            self._require(name, getattr(self, name) >= 0, "must not be negative")
        if self.context_length and self.text_dim:
            message = f"must be 0 with text_dim={self.text_dim}: features of CLIP are projected"
            self._require("text_depth", self.text_depth == 0, message)
        elif self.context_length:
            for name in ("vocab_size", "text_depth", "text_heads"):
                message = "must be positive where a caption is token ids (text_dim=0)"
                self._require(name, getattr(self, name) > 0, message)
            split = self.text_width % self.text_heads == 0
            self._require("text_heads", split, f"must divide text_width={self.text_width}")

    def _check_context(self) -> None:
        message = f"must be 0: tokens of context have text_width={self.text_width}"
        self._require("context_dim", self.context_dim == 0, message)


class OwnText(nnx.Module):
    """A transformer over token ids that is trained with the decoder (GLIDE, Nichol et al. 2022).

    A token sees all that are no padding. The feature of the end is the caption's vector.
    """

    def __init__(self, config: UnCLIPDecoderConfig):
        self.config = config
        width, depth = config.text_width, config.text_depth
        self.tokens = Table(config.vocab_size, width, 0.02)
        self.positions = Table(config.context_length, width, 0.01)
        self.blocks = stack(lambda: Block(width, config.text_heads, depth, config.dtype), depth)
        self.norm = LayerNorm(width)

    def __call__(self, condition: Told) -> Read:
        """An id beyond the table gives NaN."""
        tokens, mask = condition["tokens"], condition["text_mask"]
        x = jnp.take(self.tokens.embedding[...], tokens, axis=0, mode="fill")
        x = (x + self.positions.embedding[...]).astype(self.config.dtype)
        seen = jnp.broadcast_to(mask[:, None], (*mask.shape, mask.shape[1]))
        x = scan(self.blocks, x, seen, remat=self.config.remat)
        features = self.norm(x.astype(jnp.float32))
        end = jnp.maximum(mask.sum(-1) - 1, 0)
        return features, jnp.take_along_axis(features, end[:, None, None], axis=1)[:, 0]


class ProjectedText(nnx.Module):
    """What a frozen CLIP says of each token, by a linear layer and a norm; its text embedding."""

    def __init__(self, config: UnCLIPDecoderConfig):
        self.scale = config.scale
        width, dim = config.text_width, config.text_dim
        self.projection = linear(dim, width, dim**-0.5, _EXACT)
        self.norm = LayerNorm(width)

    def __call__(self, condition: Told) -> Read:
        """The embedding is given as it is, but for the scale."""
        features = self.norm(self.projection(condition["text_features"]))
        return features, self.scale * condition["text_embedding"]


class UnCLIPDecoder(nnx.Module):
    """The U-Net, its context [image tokens, caption], and beside time [image embedding, caption].

    Section 2.1: the embedding is projected and added to that of time, and becomes `image_tokens`
    tokens of context that stand beside those of the caption.
    """

    def __init__(self, config: UnCLIPDecoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        dim = config.embedding_dim
        self.unet = UNet(config.unet, rngs=rngs)
        self.image_tokens = linear(dim, config.image_tokens * config.text_width, dim**-0.5, _EXACT)
        self.null_image = normal((dim,), 1.0) if config.learned_null else None
        text = ProjectedText if config.text_dim else OwnText
        self.text = text(config) if config.caption else None

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        time: Num[Array, " batch"],
        condition: dict[str, PyTree[Shaped[Array, "batch ..."]]] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch height width channels_out"]:
        """Raw output, float32; what it means is the parameterization's business.

        condition:
            'image_embedding' float [batch, embedding_dim]; 'no_image' bool [batch], True where it
                is withheld.
            with a caption 'text_mask' bool [batch, context_length], True up to and with the end
                token, and 'no_text' bool [batch], True where it is withheld; and of it 'tokens'
                int [batch, context_length], or with text_dim 'text_features' [batch,
                context_length, text_dim] and 'text_embedding' [batch, embedding_dim].
            'identity_attention', never required: see `models.unet.UNet`.
        rngs: with a 'dropout' stream in training; None turns dropout off.
        """
        config = self.config
        config.check_condition(condition)
        image = config.image_vector(condition, self.null_image)
        shape = (len(image), config.image_tokens, config.text_width)
        told = {"embedding": image, "context": self.image_tokens(image).reshape(shape)}
        if self.text is not None:
            told = self._with_text(told, condition)
        if "identity_attention" in condition:
            told["identity_attention"] = condition["identity_attention"]
        return self.unet(x, time, told, rngs=rngs)

    def _with_text(self, told: dict, condition: Told) -> dict:
        features, vector = self.text(condition)
        there = ~condition[NO_TEXT][:, None]
        seen: Bool[Array, "batch context"] = condition["text_mask"] & there
        before = ((0, 0), (self.config.image_tokens, 0))
        vector = jnp.where(there, vector, 0.0)
        return {
            "embedding": jnp.concatenate([told["embedding"], vector], axis=1),
            "context": jnp.concatenate([told["context"], features], axis=1),
            "context_mask": jnp.pad(seen, before, constant_values=True),
        }


def make_unclip_decoder(config: UnCLIPDecoderConfig) -> Network:
    """The decoder of `config` as pure functions."""
    return functional(lambda rngs: UnCLIPDecoder(config, rngs=rngs), config.unet.attended)
