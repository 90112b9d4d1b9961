"""What all priors have in common: the batch, the space of the embeddings, the preview."""

import abc
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped
from ml_collections import ConfigDict

import models
from diffusion.levels import AnyArray, namespace
from models.caption import NO_TEXT
from training import frozen_clip
from training.components import ConfigError, construct

# Pixels of a cell of the preview.
_CELL = 8


class CaptionPrior(abc.ABC):
    """A model of CLIP image embeddings, given what CLIP's text tower says of the caption.

    A batch has float32 arrays 'image_embedding' [batch, dim], 'text_embedding' [batch, dim] and,
    where the network reads tokens, 'text_features' [batch, context, text_dim] with 'text_mask'
    bool [batch, context]: the data's, or with `clip` made in the step. The network sees embeddings
    in the model's space.

    Attributes:
        network: `models.functional.Network`.
        dim: of the embeddings.
        scale: the model's space is scale times the embedding (L2-normalized first, by `normalize`).
        embeddings: `training.frozen_clip.Embeddings`, where the batch has them from.
        reads_tokens: whether the network reads the features of each token.
        knows_null: whether it has learned what no caption is.
    """

    # Names of networks that the task can train.
    networks: Sequence[str]

    def __init__(
        self, config: ConfigDict, scale: float, normalize: bool, dropout: float, clip: str
    ):
        model = config.model.to_dict()
        if config.model.name not in self.networks:
            wanted = " or ".join(map(repr, self.networks))
            raise ConfigError(
                f"config.model.name = {config.model.name!r}: task {config.task!r} needs {wanted}"
            )
        if scale < 0 or not 0 <= dropout <= 1:
            raise ConfigError(
                f"config.task = {config.task!r}: scale must be 0 (the root of embedding_dim) or "
                "more, caption_dropout a probability"
            )
        self.config = config
        self.model = {name: value for name, value in model.items() if name != "name"}
        self.dim = config.model.embedding_dim
        self.scale = float(scale) or float(np.sqrt(self.dim))
        self.normalize = normalize
        self.reads_tokens = "context_length" in model
        self.knows_null = model.get("null_text", False)
        self.dropout = dropout
        if dropout and not self.knows_null:
            raise ConfigError(
                f"config.task = {config.task!r}: caption_dropout={dropout} needs "
                "config.model.null_text = True; set it, or caption_dropout=0.0"
            )
        self.network = construct(models.MODELS, config.model.name, "config.model", **self.model)
        shapes = dict.fromkeys(("image_embedding", "text_embedding"), (self.dim,))
        if self.reads_tokens:
            context = config.model.context_length
            shapes |= {"text_features": (context, config.model.text_dim), "text_mask": (context,)}
        self.embeddings = frozen_clip.Embeddings(config, clip, shapes)
        self.teachers = self.embeddings.teachers

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Both embeddings, and the features of the tokens where the network reads them.

        With `clip` the images and tokens that it makes them of.
        """
        return self.embeddings.spec(batch_size)

    def init(self, rng: Key[Array, ""]) -> dict:
        """Fresh parameters."""
        return self.network.init(rng)

    def init_state(self) -> dict:
        """None."""
        return {}

    def to_model(self, embedding: Float[AnyArray, "batch dim"]) -> Float[AnyArray, "batch dim"]:
        """From CLIP's embedding to the space of the model."""
        return self.scale * self.direction(embedding)

    def from_model(self, x: Float[AnyArray, "batch dim"]) -> Float[AnyArray, "batch dim"]:
        """Back; of unit length again where embeddings are normalized."""
        return self.direction(x / self.scale)

    def direction(self, embedding: Float[AnyArray, "batch dim"]) -> Float[AnyArray, "batch dim"]:
        """The embedding, normalized where the task does so."""
        if not self.normalize:
            return embedding
        xp = namespace(embedding)
        norm = xp.linalg.norm(embedding, axis=-1, keepdims=True)
        return embedding / xp.maximum(norm, 1e-12)

    def condition(self, batch: Mapping[str, Shaped[Array | np.ndarray, "batch *rest"]]) -> dict:
        """What the network is told of each caption; none is withheld."""
        told = {"text_embedding": self.to_model(jnp.asarray(batch["text_embedding"]))}
        if self.reads_tokens:
            told |= {name: jnp.asarray(batch[name]) for name in ("text_features", "text_mask")}
        if self.knows_null:
            told[NO_TEXT] = jnp.zeros(len(told["text_embedding"]), bool)
        return told

    def dropped(self, condition: dict, rng: Key[Array, ""]) -> dict:
        """With captions withheld at the configured rate: text alone, never what is modelled."""
        if not self.dropout:
            return condition
        drop = jax.random.bernoulli(rng, self.dropout, condition[NO_TEXT].shape)
        return condition | {NO_TEXT: drop}

    @abc.abstractmethod
    def draw(
        self, params: Any, condition: Mapping, key: Key[Array, ""], indices: Int[Array, " batch"]
    ) -> Float[Array, "batch dim"]:
        """Image embeddings; `sample` compiles it."""

    def sample(
        self,
        params: Any,
        condition: Mapping[str, Shaped[Array | np.ndarray, "batch *rest"]],
        key: Key[Array, ""],
        indices: Int[Array | np.ndarray, " batch"] | None = None,
    ) -> Float[Array, "batch dim"]:
        """Image embeddings of captions: the interface that all priors have.

        condition: the text's arrays as in a batch.
        indices: numbers of the samples, by default 0, 1, ...; a sample depends on key, its own
            number and its own caption.
        """
        told = {
            name: jnp.asarray(condition[name])
            for name in self.embeddings.shapes
            if name != "image_embedding"
        }
        count = len(told["text_embedding"])
        indices = jnp.arange(count, dtype=jnp.int32) if indices is None else indices
        return self._program(params, told, key, indices)

    @functools.cached_property
    def _program(self):
        return jax.jit(self.draw)

    @functools.cached_property
    def _shown(self) -> dict[str, np.ndarray]:
        return self.embeddings.read(self.config.log.preview_count)

    def preview(self, params, rng: Key[Array, ""]) -> Float[Array, "count height width channels"]:
        """Cosines of predicted (rows) and true image embeddings (columns) as one grey picture.

        Of the first examples of the data; black is -1, white 1. A good prior has a bright diagonal.
        """
        pairs = self._shown
        predicted, true = self.sample(params, pairs, rng), jnp.asarray(pairs["image_embedding"])
        unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)  # noqa: E731
        cosines = jnp.clip(unit(predicted) @ unit(true).T, -1.0, 1.0)
        return jnp.repeat(jnp.repeat(cosines, _CELL, 0), _CELL, 1)[None, :, :, None]
