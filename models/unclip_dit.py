"""A decoder of unCLIP whose backbone is a DiT: images of a CLIP image embedding and a caption.

The unCLIP of the paper (Ramesh et al. 2022) has a U-Net, `models.unclip_decoder`. Of small images
a transformer of few large patches learns faster, and most of all where there is no accelerator.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from models.caption import NO_TEXT
from models.dit import DiT, DiTConfig
from models.functional import Network, functional, normal
from models.told_of_clip import Told, ToldOfCLIP
from models.transformer import LayerNorm


@dataclasses.dataclass(frozen=True)
class UnCLIPDiTConfig(ToldOfCLIP, DiTConfig):
    """What such a decoder is; the fields are those of `unclip_dit` in configs/networks.py.

    embedding_dim is that of CLIP. The DiT inside has no classes. A caption is known by a frozen
    CLIP's features. Fields that cannot go together raise ValueError.
    """

    num_classes: int = 0
    null_class: bool = False
    embedding_scale: float = 0.0
    learned_null: bool = False
    context_length: int = 0
    text_dim: int = 0

    @property
    def dit(self) -> DiTConfig:
        """The DiT inside. Its vector is [image embedding, text embedding, mean text feature]."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(DiTConfig)}
        text = self.embedding_dim + self.text_dim if self.caption else 0
        return DiTConfig(**own | {"embedding_dim": self.embedding_dim + text})

    def __post_init__(self):
        super().__post_init__()
        for name in ("num_classes", "null_class", "scalars"):
            self._require(name, not getattr(self, name), "a decoder is told of a CLIP alone")
        self._positive("embedding_dim")
        for name in ("embedding_scale", "context_length", "text_dim"):
            self._require(name, getattr(self, name) >= 0, "must not be negative")
        known = not self.context_length or self.text_dim
        message = "must be positive with a caption: it is known by the features of a CLIP"
        self._require("text_dim", known, message)


class UnCLIPDiT(nnx.Module):
    """The DiT, its vector beside time: image embedding, text embedding, mean of text features."""

    def __init__(self, config: UnCLIPDiTConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.dit = DiT(config.dit, rngs=rngs)
        self.null_image = normal((config.embedding_dim,), 1.0) if config.learned_null else None
        self.norm = LayerNorm(config.text_dim) if config.caption else None

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        time: Num[Array, " batch"],
        condition: Told | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch height width channels_out"]:
        """Raw output, float32; what it means is the parameterization's business.

        condition: as that of `models.unclip_decoder.UnCLIPDecoder` with text_dim;
            'identity_attention', never required: see `models.dit.DiT`.
        rngs: not used; a DiT has no dropout.
        """
        config = self.config
        config.check_condition(condition)
        told = [config.image_vector(condition, self.null_image)]
        if self.norm is not None:
            told.append(jnp.where(condition[NO_TEXT][:, None], 0.0, self._text(condition)))
        given = {"embedding": jnp.concatenate(told, axis=-1)}
        if "identity_attention" in condition:
            given["identity_attention"] = condition["identity_attention"]
        return self.dit(x, time, given)

    def _text(self, condition: Told) -> Float[Array, "batch text"]:
        """The embedding tells little of rare words; the features of the tokens tell all."""
        seen = condition["text_mask"][..., None].astype(jnp.float32)
        total = jnp.sum(seen * condition["text_features"], axis=1)
        mean = total / jnp.maximum(seen.sum(1), 1.0)
        return jnp.concatenate(
            [self.config.scale * condition["text_embedding"], self.norm(mean)], axis=-1
        )


def make_unclip_dit(config: UnCLIPDiTConfig) -> Network:
    """The decoder of `config` as pure functions."""
    return functional(lambda rngs: UnCLIPDiT(config, rngs=rngs), tuple(range(config.depth)))
