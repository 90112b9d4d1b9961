"""A caption as the first tokens of a prior's sequence, and what stands for no caption."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Shaped

from models.functional import normal
from models.settings import Settings
from models.transformer import Tokens, linear

FIELDS = ("text_embedding", "text_features", "text_mask")
# True where the caption is withheld: bool [batch], of networks with null_text.
NO_TEXT = "no_text"
# The same of an image embedding, in decoders.
NO_IMAGE = "no_image"


@dataclasses.dataclass(frozen=True)
class CaptionSettings(Settings):
    """Fields of all networks that read a caption; their defaults are DALL-E 2's."""

    embedding_dim: int = 1024
    text_dim: int = 1024
    context_length: int = 256
    width: int = 2048
    depth: int = 24
    num_heads: int = 32
    null_text: bool = True
    remat: bool = False
    dtype: str = "float32"

    def __post_init__(self) -> None:
        self._choose("dtype", ("float32", "bfloat16"))
        self._positive("embedding_dim", "text_dim", "context_length", "width", "depth")
        self._positive("num_heads")
        self._require("width", self.width % 2 == 0, "must be even: sines and cosines of time")
        split = self.width % self.num_heads == 0
        self._require("num_heads", split, f"must divide width={self.width}")

    def check_condition(self, condition: Mapping | None, more: tuple[str, ...] = ()) -> None:
        """Raises ValueError where the condition has not the entries that this network takes."""
        wanted = sorted((*FIELDS, *more, *([NO_TEXT] if self.null_text else [])))
        if sorted(condition or ()) != wanted:
            raise ValueError(
                f"condition has {sorted(condition or ())}, but a prior with "
                f"null_text={self.null_text} takes {wanted}"
            )
        given = condition["text_features"].shape[1:]
        if given != (self.context_length, self.text_dim):
            raise ValueError(
                f"text_features has {given} for each caption, but context_length="
                f"{self.context_length} and text_dim={self.text_dim}; set them to those of the data"
            )


class Caption(nnx.Module):
    """Features of each text token, then the text embedding, each by a linear layer.

    With null_text a learned array takes the place of the features of a withheld caption and a
    learned vector that of its embedding; all tokens are seen then, so that nothing of the caption
    is left, not even its length.
    """

    def __init__(self, config: CaptionSettings):
        dims, width = (config.text_dim, config.embedding_dim), config.width
        self.features, self.embedding = (linear(n, width, n**-0.5, config.dtype) for n in dims)
        text, image = (config.context_length, config.text_dim), (config.embedding_dim,)
        self.null_features = normal(text, 1.0) if config.null_text else None
        self.null_embedding = normal(image, 1.0) if config.null_text else None

    def __call__(
        self, condition: Mapping[str, Shaped[Array, "batch *rest"]]
    ) -> tuple[Tokens, Bool[Array, "batch tokens"]]:
        """(context_length + 1 tokens, which of them are seen)."""
        features, embedding, mask = (
            condition[name] for name in ("text_features", "text_embedding", "text_mask")
        )
        if self.null_features is not None:
            absent = condition[NO_TEXT]
            features = _where(absent, self.null_features[...], features)
            embedding = _where(absent, self.null_embedding[...], embedding)
            mask = mask | absent[:, None]
        tokens = jnp.concatenate([self.features(features), self.embedding(embedding)[:, None]], 1)
        return tokens, jnp.pad(mask, ((0, 0), (0, 1)), constant_values=True)


def _where(
    rows: Bool[Array, " batch"], value: Float[Array, "*rest"], x: Float[Array, "batch *rest"]
) -> jax.Array:
    return jnp.where(rows.reshape(-1, *(1,) * value.ndim), value, x)
