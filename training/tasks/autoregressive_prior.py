"""The autoregressive prior: codes of image embeddings one by one (Ramesh et al. 2022, 2.2)."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from models.autoregressive_prior import DOT, sample_codes
from training import guidance, quantization
from training.components import ConfigError
from training.tasks.caption_prior import CaptionPrior
from training.tasks.prior import guidance_for_captions


class AutoregressivePriorTask(CaptionPrior):
    """Trains a network to predict the codes of `training.quantization` by cross-entropy.

    Attributes:
        top: share of the distribution of dot products, from above, from which sampling takes the
            one that it asks for (the paper: 0.5).
        temperature: of the logits in sampling.
    """

    networks = ("autoregressive_prior",)

    def __init__(
        self,
        config: ConfigDict,
        quantizer: str = "",
        fit_count: int = 65_536,
        scale: float = 0.0,
        normalize: bool = True,
        caption_dropout: float = 0.1,
        top: float = 0.5,
        temperature: float = 1.0,
        clip: str = "",
    ):
        """Settings.

        quantizer: a file that --mode=quantize wrote; '': fitted on the first fit_count pairs.
        clip: the work directory of a CLIP that embeds images and captions; '': the data do.
        """
        super().__init__(config, scale, normalize, caption_dropout, clip)
        if not 0 < top <= 1 or not temperature > 0 or fit_count < 1:
            raise ConfigError(
                f"config.task = {config.task!r}: top must be in (0, 1], temperature above 0, "
                "fit_count 1 or more"
            )
        self.top, self.temperature = top, temperature
        self._file, self._fit_count = quantizer, fit_count

    def fit(self) -> quantization.Quantizer:
        """The quantizer of the first pairs of `data.source`, in the space of the model."""
        names = ("image_embedding", "text_embedding")
        pairs = self.embeddings.read(self._fit_count, fields=names)
        # On the host: it may be first needed while a program is traced.
        images, texts = (self.to_model(pairs[name]) for name in names)
        model = self.config.model
        try:
            return quantization.fit(images, texts, model.components, model.buckets)
        except ValueError as error:
            raise ConfigError(f"config.model: {error}") from error

    @functools.cached_property
    def quantizer(self) -> quantization.Quantizer:
        """Read or fitted when it is first needed.

        Raises:
            ConfigError: no such file, or it is of another network.
        """
        if not self._file:
            return self.fit()
        try:
            found = quantization.load(self._file)
        except ValueError as error:
            raise ConfigError(f"config.task: {error}") from error
        model = self.config.model
        wanted = (model.embedding_dim, model.components, model.buckets)
        has = (*found.basis.shape, found.buckets)
        if has != wanted:
            raise ConfigError(
                f"config.task: quantizer={self._file!r} has (embedding_dim, components, buckets) = "
                f"{has}, and config.model {wanted}; set these, or quantize again"
            )
        return found

    def loss(
        self, params, state: dict, batch: Mapping, rng: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], dict]]:
        """Mean cross-entropy of the codes in nats; how many are right is logged."""
        batch, state = self.embeddings.fill(batch, state)
        images = self.to_model(jnp.asarray(batch["image_embedding"]))
        codes = self.quantizer.encode(images)
        condition = self.dropped(self.condition(batch), rng)
        dots = jnp.sum(images * condition["text_embedding"], axis=-1)
        condition[DOT] = self.quantizer.encode_dot(dots)
        logits = self.network.apply(params, codes[:, :-1], condition)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, codes).mean()
        return loss, ({"accuracy": jnp.mean(logits.argmax(-1) == codes)}, state)

    @functools.cached_property
    def _scale(self) -> float:
        """Of classifier-free guidance; 1 is none."""
        names = self.config.sample.guidance
        guidance_for_captions(names, self.knows_null)
        items = guidance.build_all(names)
        if not guidance.only_a_scale(items):
            raise ConfigError(
                f"{guidance.FIELD} = {names}: of logits there is classifier_free(scale=...) alone"
            )
        return float(guidance.told_scale(items))

    def dot_codes(self, keys: Key[Array, " batch"]) -> Int[Array, " batch"]:
        """Dot products to ask for: uniform over the top share of the distribution."""
        buckets = self.config.model.buckets
        first = min(round(buckets * (1 - self.top)), buckets - 1)
        return jax.vmap(lambda key: jax.random.randint(key, (), first, buckets))(keys)

    def draw(
        self, params: Any, condition: Mapping, key: Key[Array, ""], indices: Int[Array, " batch"]
    ) -> Float[Array, "batch dim"]:
        """Embeddings of drawn codes; sample i has the key fold_in(key, i)."""
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
        components = self.config.model.components
        # Codes take the numbers below.
        ask = jax.vmap(lambda key: jax.random.fold_in(key, components))(keys)
        told = self.condition(condition) | {DOT: self.dot_codes(ask)}
        codes = sample_codes(
            self.network,
            params,
            told,
            keys,
            components,
            temperature=self.temperature,
            scale=self._scale,
        )
        return self.from_model(self.quantizer.decode(codes))
