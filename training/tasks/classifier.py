"""A classifier of noisy images, for guidance (Dhariwal and Nichol 2021, section 4.1)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

import diffusion
import models
from diffusion.gaussian import q_sample
from training.components import ConfigError, build, construct


class ClassifierTask:
    """Trains p(label | noisy image) by cross-entropy at the noise levels of `config.diffusion`.

    Of that section it reads the schedule, the time sampler and, for how a network is given a noisy
    image and its time, the parameterization. The loss is not weighted over levels.
    """

    def __init__(self, config: ConfigDict):
        settings = config.diffusion
        self.config = config
        self.image_shape = (config.data.image_size, config.data.image_size, config.data.channels)
        self.field = config.data.field
        self.num_classes = config.model.get("num_classes", 0)
        if not self.num_classes:
            raise ConfigError(
                "config.model.num_classes = 0: a classifier needs classes; take a source of data "
                "with labels and set their number"
            )
        if config.model.name != "unet_encoder":
            raise ConfigError(
                f"config.model.name = {config.model.name!r}: predicts images; task 'classifier' "
                "needs 'unet_encoder'"
            )
        self.schedule = build(diffusion.SCHEDULES, settings.schedule, "config.diffusion.schedule")
        if self.schedule.init(jax.random.key(0)):
            raise ConfigError(
                f"config.diffusion.schedule = {settings.schedule!r}: is learned with a diffusion "
                "model; a classifier needs a fixed one, that of the model which it will guide"
            )
        self.parameterization = build(
            diffusion.PARAMETERIZATIONS,
            settings.parameterization,
            "config.diffusion.parameterization",
        )
        self.time_sampler = build(
            diffusion.TIME_SAMPLERS, settings.time_sampler, "config.diffusion.time_sampler"
        )
        if config.data.device_augmentation:
            raise ConfigError(
                f"config.data.device_augmentation = {config.data.device_augmentation!r}: must be "
                "'' with task 'classifier', which is told of no augmentation"
            )
        model = config.model.to_dict()
        self.network = construct(
            models.MODELS,
            model.pop("name"),
            "config.model",
            **model,
            in_channels=config.data.channels,
            out_channels=self.num_classes,
            image_size=config.data.image_size,
        )

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Images as uint8 (or latents), and labels."""
        dtype = jnp.uint8 if self.field == "image" else jnp.float32
        return {
            self.field: jax.ShapeDtypeStruct((batch_size, *self.image_shape), dtype),
            "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        }

    def init(self, rng: Key[Array, ""]) -> dict:
        """The network's parameters."""
        return self.network.init(rng)

    def init_state(self) -> dict:
        """The time sampler's memory."""
        return self.time_sampler.init(self.schedule)

    def logits(
        self,
        params: Mapping,
        x: Float[Array, "batch height width channels"],
        level: diffusion.NoiseLevel,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Of noisy x; level fields are scalars or [batch]."""
        x_in, time = self.parameterization.network_input(x, level, self.schedule)
        time = jnp.broadcast_to(jnp.asarray(time), x.shape[:1])
        return self.network.apply(params, x_in, time, dropout_key=dropout_key)

    def log_prob(self, params: Mapping):
        """(x, level, label) -> log p(label | x) [batch]: what guidance takes the gradient of."""

        def log_prob(x, level, label: Int[Array, " batch"]) -> Float[Array, " batch"]:
            logits = self.logits(params, x, level)
            return -optax.softmax_cross_entropy_with_integer_labels(logits, label)

        return log_prob

    def loss(
        self, params, state: dict, batch: Mapping, rng: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], dict]]:
        """Mean cross-entropy in nats; the accuracy is logged, both over all noise levels."""
        time_rng, noise_rng, dropout_rng = jax.random.split(rng, 3)
        if self.field == "image":
            images = diffusion.to_model(batch["image"])
        else:
            images = self.config.data.scale * batch[self.field]
        label = batch["label"]
        drawn = self.time_sampler.draw(time_rng, len(label), self.schedule, state)
        noise = jax.random.normal(noise_rng, images.shape)
        logits = self.logits(params, q_sample(images, noise, drawn.level), drawn.level, dropout_rng)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        right = jnp.float32(logits.argmax(-1) == label)
        state = self.time_sampler.update(state, drawn, losses)
        return (drawn.weight * losses).mean(), ({"accuracy": right.mean()}, state)

    def preview(self, params, rng: Key[Array, ""]) -> Float[Array, "count height width channels"]:
        """Where log p(label | x) grows: its gradient at noise of sigma = alpha, labels in turn.

        Each picture is scaled to a largest value of 1; of latents the first channels.
        """
        count = self.config.log.preview_count
        label = jnp.asarray(np.arange(count) % self.num_classes, jnp.int32)
        t = self.schedule.t_of_logsnr(np.float64(0.0))
        level = diffusion.NoiseLevel(*(jnp.float32(f) for f in self.schedule.level(t)))
        x = level.sigma * jax.random.normal(rng, (count, *self.image_shape))
        slope = jax.jit(
            lambda params, x: jax.grad(lambda x: self.log_prob(params)(x, level, label).sum())(x)
        )(params, x)
        slope = slope[..., : 3 if slope.shape[-1] >= 3 else 1]
        return slope / jnp.maximum(jnp.abs(slope).max((1, 2, 3), keepdims=True), 1e-12)
