"""A diffusion model of images: unconditional or of a class."""

import functools
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

import diffusion
import input_pipeline
import models
from training import sampler
from training.components import ConfigError, build, construct

# Where parameters that the objective learns (of schedule and weight) stand beside the network's.
OBJECTIVE = "objective"


class DiffusionTask:
    """Trains a network to denoise, as `config.diffusion` says.

    Attributes:
        network: `models.functional.Network`, called (x, time, condition) -> raw.
        schedule, parameterization: of `diffusion`.
        image_shape: (height, width, channels) of what is modelled.
        num_classes: 0 when unconditional.
        null_label: the label that stands for none, or None.
    """

    # Numbers that the network is told beside time: 'step' and 'guidance' are the sampler's.
    scalars: tuple[str, ...] = ()
    # Side in pixels of what is modelled; 0: that of the data.
    side: int = 0
    # Images side by side in the network's input: its own, and those that it is told beside.
    inputs: int = 1
    # Trained runs whose parameters the loss finds in its state, by name (`training.teacher`).
    teachers: Mapping[str, Any] = types.MappingProxyType({})

    def __init__(self, config: ConfigDict):
        self.config = config
        settings = config.diffusion
        side = self.side or config.data.image_size
        self.image_shape = (side, side, config.data.channels)
        self.field = config.data.field
        self.num_classes = config.model.get("num_classes", 0)
        self.null_label = self.num_classes if config.model.get("null_class", False) else None
        self.schedule = build(diffusion.SCHEDULES, settings.schedule, "config.diffusion.schedule")
        self.parameterization = build(
            diffusion.PARAMETERIZATIONS,
            settings.parameterization,
            "config.diffusion.parameterization",
        )
        self.learned_variance = settings.variance == "learned_range"
        self.objective = self._objective(settings)
        self.augment = None
        if config.data.device_augmentation:
            self.augment = build(
                input_pipeline.DEVICE_AUGMENTATIONS,
                config.data.device_augmentation,
                "config.data.device_augmentation",
            )
        model = config.model.to_dict()
        if self.scalars:
            model["scalars"] = self.scalars
        self.network = construct(
            models.MODELS,
            model.pop("name"),
            "config.model",
            **model,
            in_channels=config.data.channels * self.inputs,
            out_channels=config.data.channels * (2 if self.learned_variance else 1),
            image_size=side,
        )
        self._preview = None

    def _objective(self, settings: ConfigDict) -> diffusion.Objective:
        objective = functools.partial(
            diffusion.Objective,
            schedule=self.schedule,
            parameterization=self.parameterization,
            weighting=build(diffusion.WEIGHTINGS, settings.weighting, "config.diffusion.weighting"),
            time_sampler=build(
                diffusion.TIME_SAMPLERS, settings.time_sampler, "config.diffusion.time_sampler"
            ),
            loss=settings.loss,
            variance=settings.variance,
            uncertainty=diffusion.Uncertainty(settings.uncertainty_channels)
            if settings.uncertainty_channels
            else None,
        )
        try:
            return objective()
        except ValueError as error:
            raise ConfigError(f"config.diffusion: {error}") from error

    @property
    def null(self) -> dict[str, Any] | None:
        """The condition that says nothing, for guidance; None where the network knows none."""
        return None if self.null_label is None else {"label": np.int32(self.null_label)}

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Images as uint8 (or latents), and labels where the model is conditioned on them."""
        dtype = jnp.uint8 if self.field == "image" else jnp.float32
        spec = {self.field: jax.ShapeDtypeStruct((batch_size, *self.image_shape), dtype)}
        if self.num_classes:
            spec["label"] = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
        return spec

    def init(self, rng: Key[Array, ""]) -> dict:
        """Fresh parameters: the network's, and under `OBJECTIVE` what the objective learns."""
        learned = self.objective.init(jax.random.fold_in(rng, 1))
        return self.network.init(rng) | ({OBJECTIVE: learned} if learned else {})

    def init_state(self) -> dict:
        """The time sampler's memory."""
        return self.objective.init_state()

    def split(self, params: Mapping) -> tuple[dict, dict]:
        """(the network's parameters, what the objective learned)."""
        weights = {name: value for name, value in params.items() if name != OBJECTIVE}
        return weights, params.get(OBJECTIVE, {})

    def condition(self, batch: Mapping, rng: Key[Array, ""]) -> dict | None:
        """What the network is told of each image; labels are dropped at the configured rate."""
        if not self.num_classes:
            return None
        label = batch["label"]
        if self.config.diffusion.label_dropout > 0:
            drop = jax.random.bernoulli(rng, self.config.diffusion.label_dropout, label.shape)
            label = jnp.where(drop, self.null_label, label)
        return {"label": label}

    def loss(
        self, params, state: dict, batch: Mapping, rng: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], dict]]:
        """Mean of the objective over the batch."""
        noise_rng, label_rng, dropout_rng = jax.random.split(rng, 3)
        weights, learned = self.split(params)

        def network(x, time, condition):
            return self.network.apply(weights, x, time, condition, dropout_key=dropout_rng)

        images, condition = self.examples(batch, label_rng, jax.random.fold_in(rng, 3))
        result = self.objective(network, images, condition, noise_rng, learned, state)
        metrics = {name: value.mean() for name, value in result.metrics.items()}
        return result.loss.mean(), (metrics, result.state)

    def examples(
        self, batch: Mapping, label_rng: Key[Array, ""], augment_rng: Key[Array, ""]
    ) -> tuple[Float[Array, "batch height width channels"], dict | None]:
        """(what is modelled, what the network is told of it)."""
        if self.field == "image":
            images = diffusion.to_model(batch["image"])
        else:
            images = self.config.data.scale * jnp.asarray(batch[self.field])
        condition = self.condition(batch, label_rng)
        if self.augment is not None:
            images, labels = self.augment(images, augment_rng)
            condition = (condition or {}) | {"augment": labels}
        return images, condition

    def preview(self, params, rng: Key[Array, ""]) -> Float[Array, "count height width channels"]:
        """Samples by the configured sampler; of latents their first channels, about in [-1, 1]."""
        count = self.config.log.preview_count
        if self._preview is None:
            self._preview = sampler.build_sampler(self.config, self)
        indices = np.arange(count, dtype=np.int32)
        labels = sampler.sample_labels(self.config.sample.labels, self.num_classes, indices)
        pictures = self._preview(params, rng, indices, labels)
        if self.field == "image":
            return pictures
        # Latents of unit variance: three standard deviations to full contrast.
        return pictures[..., : 3 if pictures.shape[-1] >= 3 else 1] / 3.0
