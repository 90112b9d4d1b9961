"""Priors that map text embeddings to image embeddings without noise: the baselines."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, Shaped
from ml_collections import ConfigDict

from training.components import ConfigError
from training.tasks.caption_prior import CaptionPrior


class RegressionPriorTask(CaptionPrior):
    """Trains the squared error to the image embedding, which gives the mean over all that fit.

    contrastive: weight of a second loss (ECLIPSE, Patel et al. 2023: 0.2), the cross-entropy of
        telling a prediction's own text embedding from the others of the batch by cosine over
        `temperature`.
    clip: the work directory of a CLIP that embeds images and captions; '': the data do.
    """

    networks = ("linear_prior", "mlp_prior")

    def __init__(
        self,
        config: ConfigDict,
        scale: float = 0.0,
        normalize: bool = True,
        contrastive: float = 0.0,
        temperature: float = 0.07,
        clip: str = "",
    ):
        super().__init__(config, scale, normalize, 0.0, clip)
        if contrastive < 0 or not temperature > 0:
            raise ConfigError(
                f"config.task = {config.task!r}: contrastive must be 0 or more, temperature above 0"
            )
        if contrastive and config.train.accumulate != 1:
            # A microbatch would contrast among itself alone: another loss.
            raise ConfigError(
                f"config.train.accumulate = {config.train.accumulate}: must be 1 with task "
                f"{config.task!r}, whose contrastive loss compares all of a batch; set it, or "
                "contrastive=0.0"
            )
        self.contrastive, self.temperature = contrastive, temperature

    def loss(
        self, params, state: dict, batch: Mapping, rng: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], dict]]:
        """Mean squared error of a coordinate, and the contrastive loss in nats."""
        batch, state = self.embeddings.fill(batch, state)
        condition = self.condition(batch)
        target = self.to_model(jnp.asarray(batch["image_embedding"]))
        predicted = self.network.apply(params, condition)
        mse = jnp.square(predicted - target).mean()
        metrics = {"mse": mse}
        if not self.contrastive:
            return mse, (metrics, state)
        unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)  # noqa: E731
        logits = unit(predicted) @ unit(condition["text_embedding"]).T / self.temperature
        own = jnp.arange(len(logits))
        contrast = optax.softmax_cross_entropy_with_integer_labels(logits, own).mean()
        return mse + self.contrastive * contrast, (metrics | {"contrastive": contrast}, state)

    def draw(
        self, params: Any, condition: Mapping, key: Key[Array, ""], indices: Int[Array, " batch"]
    ) -> Float[Array, "batch dim"]:
        """The prediction; nothing of it is random."""
        return self.from_model(self.network.apply(params, self.condition(condition)))


def text_as_image(
    params: Any,
    condition: Mapping[str, Shaped[Array | np.ndarray, "batch *rest"]],
    key: Key[Array, ""] | None = None,
    indices: Int[Array | np.ndarray, " batch"] | None = None,
) -> Float[Array, "batch dim"]:
    """No prior: the text embedding stands for the image's (Ramesh et al. 2022, section 5.1).

    It has the interface of `CaptionPrior.sample`, and parameters None.
    """
    text = jnp.asarray(condition["text_embedding"])
    return text / jnp.maximum(jnp.linalg.norm(text, axis=-1, keepdims=True), 1e-12)
