"""Super-resolution: a diffusion model of images, told the same images at low resolution."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8
from ml_collections import ConfigDict

import diffusion
from input_pipeline.decoder import Decoder
from input_pipeline.degradations import DEGRADATIONS, add_noise, degrade
from input_pipeline.resize import resize
from models import Network
from training import held_out, sampler
from training.components import ConfigError
from training.tasks.diffusion import DiffusionTask

# Names in the condition.
LOW = "low"
AUGMENTATION = "augmentation"


class SuperResolutionTask(DiffusionTask):
    """An upsampler from `low` pixels a side to `config.data.image_size` (Saharia et al., 2021).

    The low-resolution image, enlarged to the size of the sample, is concatenated to the noisy one
    on the channels. A network without attention is trained on crops and applied to whole images.

    low: side of the low-resolution images in pixels.
    degradation: how they are made, of `input_pipeline.degradations`: 'none', 'blur' (DALL-E 2's
        first upsampler) or 'bsr' (its second).
    blur: probability of the blur of 'blur'.
    noise: range of the noise conditioning augmentation (Ho et al., 2021): each low-resolution image
        has a level drawn from it, which the network is told; (0.0, 0.0): there is none.
    crop: side of the random crops of training as a share of the image's; 1.0: whole images.
        DALL-E 2 has 0.25; crops of a quarter of the area are 0.5.
    sampling_noise: the level at sampling (Imagen: 0.1 to 0.3 look best, 0 has the best FID).
    held_out: split of config.data.source whose images are made large in samples and previews. They
        are reduced as by 'none', whatever the degradation of training.
    """

    inputs = 2

    def __init__(
        self,
        config: ConfigDict,
        low: int,
        degradation: str = "blur",
        blur: float = 0.5,
        noise: tuple[float, ...] = (0.0, 0.3),
        crop: float = 1.0,
        sampling_noise: float = 0.0,
        held_out: str = "test",
    ):
        size = config.data.image_size
        self.config = config
        self.low, self.degradation, self.blur = low, degradation, blur
        self.noise, self.sampling_noise = tuple(noise), sampling_noise
        self.crop_side = round(crop * size)
        self._require(0 < low < size, f"low={low} must be below config.data.image_size = {size}")
        allowed = ", ".join(map(repr, DEGRADATIONS))
        self._require(degradation in DEGRADATIONS, f"degradation={degradation!r}: take {allowed}")
        self._require(0.0 <= blur <= 1.0, f"blur={blur} is a probability, from 0 to 1")
        ordered = len(noise) == 2 and 0.0 <= noise[0] <= noise[1] <= 1.0
        self._require(ordered, f"noise={noise}: two levels, the lower one first, from 0 to 1")
        told = noise[0] <= sampling_noise <= noise[1] if ordered else True
        self._require(
            told, f"sampling_noise={sampling_noise} must be in the range of training, noise={noise}"
        )
        self._require(0.0 < crop <= 1.0, f"crop={crop} is a share of the side, in (0, 1]")
        for field, value, wanted in (
            ("data.channels", config.data.channels, 3),
            ("data.field", config.data.field, "image"),
            ("data.device_augmentation", config.data.device_augmentation, ""),
            ("model.num_classes", config.model.get("num_classes", 0), 0),
        ):
            self._require(value == wanted, f"config.{field} must be {wanted!r}, not {value!r}")
        if self.crop_side < size:
            model = config.model
            free = not model.get("attention_resolutions", True) and not model.get(
                "middle_attention", True
            )
            self._require(
                free,
                f"crop={crop}: a network that is applied to larger images than it was trained on "
                "must have no attention; set config.model.attention_resolutions = () and "
                "config.model.middle_attention = False (unet), or crop=1.0",
            )
            halvings = 2 ** (len(model.channel_mult) - 1)
            self._require(
                self.crop_side % halvings == 0,
                f"crop={crop} gives {self.crop_side} px, which must be a multiple of {halvings} "
                "(config.model.channel_mult)",
            )
        if self.noise[1] > 0:
            self.scalars = (AUGMENTATION,)
        super().__init__(config)
        self.network = self.network._replace(apply=_concatenating(self.network))
        self._held_out = held_out
        self._held_out_source: Decoder | None = None

    def _require(self, condition: bool, message: str) -> None:
        if not condition:
            raise ConfigError(f"config.task = {self.config.task!r}: {message}")

    def examples(
        self, batch: Mapping, label_rng: Key[Array, ""], augment_rng: Key[Array, ""]
    ) -> tuple[Float[Array, "batch height width channels"], dict | None]:
        """(crops, the same crops of the degraded and enlarged images with their noise levels)."""
        images = diffusion.to_model(batch["image"])
        degrade_rng, level_rng, noise_rng, crop_rng = jax.random.split(augment_rng, 4)
        small = degrade(images, degrade_rng, self.low, self.degradation, self.blur)
        low, high = self.noise
        level = jax.random.uniform(level_rng, images.shape[:1], minval=low, maxval=high)
        condition = self._told(small, level, noise_rng)
        if self.crop_side < images.shape[1]:
            both = jnp.concatenate([images, condition[LOW]], axis=-1)
            images, condition[LOW] = jnp.split(_crops(both, self.crop_side, crop_rng), 2, axis=-1)
        return images, condition

    def _told(
        self,
        small: Float[Array, "batch low low channels"],
        level: Float[Array, " batch"],
        rng: Key[Array, ""],
    ) -> dict[str, Array]:
        """What the network is told of low-resolution images: enlarged, with noise of this level."""
        if self.scalars:
            small = add_noise(small, rng, level)
        told = {LOW: resize(small, self.image_shape[:2], "bicubic")}
        return told | ({AUGMENTATION: level} if self.scalars else {})

    def true_images(
        self, indices: Int[np.ndarray, " batch"]
    ) -> UInt8[np.ndarray, "batch height width channels"]:
        """Held-out images, in their own order, from the first again after the last."""
        if self._held_out_source is None:
            self._held_out_source = held_out.reader(self.config, self._held_out, ("image",))
        return held_out.examples(self._held_out_source, indices)["image"]

    def sample_condition(self, indices: Int[np.ndarray, " batch"]) -> dict[str, np.ndarray]:
        """What the network is told of samples: held-out images, reduced, with `sampling_noise`.

        Sample i is of image i of the split; the noise on it follows from i alone.
        """
        images = diffusion.to_model(jnp.asarray(self.true_images(indices)))
        small = degrade(images, jax.random.key(0), self.low, "none")
        level, told = jnp.full(1, self.sampling_noise, jnp.float32), []
        for index, image in zip(indices, small, strict=True):
            key = jax.random.fold_in(jax.random.key(0), int(index))
            told.append(self._told(image[None], level, key))
        return {name: np.concatenate([part[name] for part in told]) for name in told[0]}

    def beside(
        self,
        images: UInt8[np.ndarray, "batch height width channels"],
        indices: Int[np.ndarray, " batch"],
    ) -> UInt8[np.ndarray, "batch height three_widths channels"]:
        """For each sample: what it was made from, the sample, the true image."""
        low = np.asarray(diffusion.to_uint8(jnp.asarray(self.sample_condition(indices)[LOW])))
        return np.concatenate([low, images, self.true_images(indices)], axis=2)

    def preview(
        self, params: Any, rng: Key[Array, ""]
    ) -> Float[Array, "count height width channels"]:
        """Low-resolution image, sample and true image side by side."""
        if self._preview is None:
            self._preview = sampler.build_sampler(self.config, self)
        indices = np.arange(self.config.log.preview_count, dtype=np.int32)
        told = self.sample_condition(indices)
        samples = self._preview(params, rng, indices, np.zeros_like(indices), told)
        pictures = self.beside(np.asarray(diffusion.to_uint8(samples)), indices)
        return diffusion.to_model(jnp.asarray(pictures))


def _concatenating(network: Network):
    """The network's call with the low-resolution image of the condition on its input channels."""

    def apply(params, x, time, condition, **kwargs):
        if LOW not in (condition or {}):
            raise ValueError(
                f"condition has no {LOW!r}: an upsampler has to be told low-resolution images; "
                "training, previews and --mode=sample do so, other jobs do not"
            )
        rest = {name: value for name, value in condition.items() if name != LOW}
        if AUGMENTATION in rest:
            # Its sinusoids are those of an index of a thousand steps.
            rest[AUGMENTATION] = 1000 * rest[AUGMENTATION]
        x = jnp.concatenate([x, condition[LOW].astype(x.dtype)], axis=-1)
        return network.apply(params, x, time, rest or None, **kwargs)

    return apply


def _crops(
    images: Float[Array, "batch height width channels"], side: int, rng: Key[Array, ""]
) -> Float[Array, "batch side side channels"]:
    """A random square of each image."""
    last = images.shape[1] - side
    corners = jax.random.randint(rng, (len(images), 2), 0, last + 1)

    def crop(image, corner):
        return jax.lax.dynamic_slice(image, (*corner, 0), (side, side, image.shape[-1]))

    return jax.vmap(crop)(images, corners)
