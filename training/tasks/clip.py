"""CLIP: images and their captions in one space, by contrast or pair by pair."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

import diffusion
import input_pipeline
import models
from models.clip import end_position
from training.components import ConfigError, build, construct

# Images that the preview searches, and how many of the nearest it shows beside each.
_SEARCHED, _COLUMNS = 256, 8


def normalize(x: Float[Array, "*batch embedding"]) -> Float[Array, "*batch embedding"]:
    """Rows of length 1; a row of zeros stays as it is."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


def contrastive_loss(
    logits: Float[Array, "batch batch"],
) -> Float[Array, ""]:
    """Mean of the two cross-entropies, over texts and over images (Radford et al., figure 3)."""
    labels = jnp.arange(len(logits))
    both = (logits, logits.T)
    entropy = optax.softmax_cross_entropy_with_integer_labels
    return sum(entropy(each, labels).mean() for each in both) / 2


def sigmoid_loss(
    logits: Float[Array, "batch batch"],
) -> Float[Array, ""]:
    """Each pair is right or wrong by itself (Zhai et al. 2023, eq. 1); a mean over images."""
    sign = 2 * jnp.eye(len(logits)) - 1
    return -jax.nn.log_sigmoid(sign * logits).sum() / len(logits)


LOSSES = {"contrastive": contrastive_loss, "sigmoid": sigmoid_loss}


class CLIPTask:
    """Trains a `clip` network on images and tokens.

    The loss is written on the global batch: every image is compared with every text of it, and the
    compiler gathers the embeddings across devices. So the loss and its gradient are those of one
    device, whatever the mesh.
    """

    def __init__(self, config: ConfigDict, loss: str = "contrastive"):
        self.config = config
        if loss not in LOSSES:
            raise self._error(f"loss={loss!r} is none of {', '.join(LOSSES)}")
        self.compare = LOSSES[loss]
        model, data = config.model.to_dict(), config.data
        name = model.pop("name")
        if name != "clip":
            raise ConfigError(f"config.model.name = {name!r}: task 'clip' needs 'clip'")
        for field, value, wanted in (
            ("data.field", data.field, "image"),
            ("data.device_augmentation", data.device_augmentation, ""),
            ("data.context", data.context, model["context_length"]),
            ("model.logit_bias", model["logit_bias"], loss == "sigmoid"),
            # A microbatch would contrast among itself alone: another loss.
            ("train.accumulate", config.train.accumulate, 1),
        ):
            if value != wanted:
                raise self._error(f"config.{field} must be {wanted!r}, not {value!r}")
        self.network = construct(
            models.MODELS,
            name,
            "config.model",
            **model,
            in_channels=data.channels,
            out_channels=model["embedding_dim"],
            image_size=data.image_size,
        )

    def _error(self, message: str) -> ConfigError:
        return ConfigError(f"config.task = {self.config.task!r}: {message}")

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Images as uint8, and the ids of their captions."""
        data = self.config.data
        shape = (batch_size, data.image_size, data.image_size, data.channels)
        return {
            "image": jax.ShapeDtypeStruct(shape, jnp.uint8),
            "tokens": jax.ShapeDtypeStruct((batch_size, data.context), jnp.int32),
        }

    def init(self, rng: Key[Array, ""]) -> dict:
        """The network's parameters."""
        return self.network.init(rng)

    def init_state(self) -> dict:
        """Nothing."""
        return {}

    def loss(
        self, params, state: dict, batch: Mapping, rng: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], dict]]:
        """The loss of `config.task`; rng is not used.

        Logged: how often an image is nearest to its own text in the batch ('accuracy_image') and a
        text to its own image, and the scale of the logits.
        """
        out = self.network.apply(params, diffusion.to_model(batch["image"]), batch["tokens"])
        image, text = normalize(out.image_embedding), normalize(out.text_embedding)
        logits = out.scale * image @ text.T
        if out.bias is not None:
            logits += out.bias
        own = jnp.arange(len(logits))
        right = {f"accuracy_{of}": logits.argmax(k) == own for k, of in ((1, "image"), (0, "text"))}
        metrics = {name: jnp.float32(hits).mean() for name, hits in right.items()}
        return self.compare(logits), (metrics | {"logit_scale": out.scale}, state)

    @functools.cached_property
    def embed_images(self):
        """Jitted (params, uint8 [batch height width channels]) -> normalized embeddings."""

        def embed(params, images):
            out = self.network.apply(params, diffusion.to_model(images))
            return normalize(out.image_embedding)

        return jax.jit(embed)

    @functools.cached_property
    def embed_texts(self):
        """Jitted (params, int [batch context]) -> (normalized embeddings, features of tokens)."""

        def embed(params, tokens):
            out = self.network.apply(params, tokens=tokens)
            return normalize(out.text_embedding), out.text_features

        return jax.jit(embed)

    def text_mask(
        self, tokens: Int[Array | np.ndarray, "batch context"]
    ) -> Bool[Array | np.ndarray, "batch context"]:
        """Which tokens are text: True up to and with the end token."""
        end = end_position(tokens, self.config.model.end_token)
        return np.arange(tokens.shape[1]) <= end[:, None]

    @functools.cached_property
    def _pictures(self) -> np.ndarray:
        data = self.config.data
        source = build(input_pipeline.SOURCES, data.source, "config.data.source")
        loader = input_pipeline.make_loader(
            source,
            image_size=data.image_size,
            channels=data.channels,
            batch_size=min(_SEARCHED, len(source)),
            seed=self.config.sample.seed,
            fields=("image",),
            process_index=0,
            process_count=1,
            on_bad_image=data.on_bad_image,
        )
        try:
            return next(loader)["image"]
        finally:
            loader.close()

    def preview(self, params, rng: Key[Array, ""]) -> Float[Array, "count height width channels"]:
        """Training images, and after each the seven that are nearest to it in the embedding.

        Where training goes well they come to share what captions say. rng is not used: the images
        are always the same.
        """
        pictures = self._pictures
        embedding = self.embed_images(params, pictures)
        rows = max(1, self.config.log.preview_count // _COLUMNS)
        nearest = jnp.argsort(-embedding[:rows] @ embedding.T, axis=1, stable=True)[:, :_COLUMNS]
        return diffusion.to_model(jnp.asarray(pictures)[nearest.reshape(-1)])
