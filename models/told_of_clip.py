"""What a decoder of unCLIP is told, whatever network it is: fields of a condition, checked."""

from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree, Shaped

from models.caption import NO_IMAGE, NO_TEXT

Told = Mapping[str, PyTree[Shaped[Array, "batch ..."]]]
_TOKENS = ("tokens", "text_mask")
_FEATURES = ("text_features", "text_embedding", "text_mask")


class ToldOfCLIP:
    """Beside the settings of a network with `embedding_dim`, `embedding_scale`, `context_length`
    and `text_dim`: what of an image's CLIP embedding and caption it is told."""

    @property
    def caption(self) -> tuple[str, ...]:
        """Fields of a batch and of the condition that are the caption; () without one."""
        if not self.context_length:
            return ()
        return _FEATURES if self.text_dim else _TOKENS

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape, for each image, of the embedding and of all that is of the caption."""
        known = {
            "image_embedding": (self.embedding_dim,),
            "text_embedding": (self.embedding_dim,),
            "text_features": (self.context_length, self.text_dim),
            "tokens": (self.context_length,),
            "text_mask": (self.context_length,),
        }
        return {name: known[name] for name in ("image_embedding", *self.caption)}

    @property
    def scale(self) -> float:
        """What embeddings are multiplied by."""
        return self.embedding_scale or self.embedding_dim**0.5

    def image_vector(
        self, condition: Told, null: nnx.Param | None
    ) -> Float[Array, "batch embedding"]:
        """The scaled image embedding; where it is withheld `null`, or zeros if that is None."""
        absent = condition[NO_IMAGE][:, None]
        absence = 0.0 if null is None else null[...]
        return jnp.where(absent, absence, self.scale * condition["image_embedding"])

    def check_condition(self, condition: Told | None) -> None:
        """Raises ValueError where the condition is not what this network takes."""
        wanted = sorted([*self.shapes, NO_IMAGE, *([NO_TEXT] if self.caption else [])])
        given = sorted(set(condition or ()) - {"identity_attention"})
        if given != wanted:
            raise ValueError(
                f"condition has {given}, but a decoder with context_length={self.context_length}, "
                f"text_dim={self.text_dim} takes {wanted}"
            )
        for name, shape in self.shapes.items():
            if condition[name].shape[1:] != shape:
                raise ValueError(
                    f"condition[{name!r}] has {condition[name].shape[1:]} for each image, but "
                    f"embedding_dim={self.embedding_dim}, context_length={self.context_length}, "
                    f"text_dim={self.text_dim} make it {shape}; set them to those of the data"
                )
