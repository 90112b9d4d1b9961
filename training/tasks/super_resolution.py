"""Super-resolution: a diffusion model of images, told the same images at low resolution."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8
from ml_collections import ConfigDict

import diffusion
from input_pipeline.decoder import Decoder
from input_pipeline.degradations import DEGRADATIONS, add_noise, degrade
from input_pipeline.resize import FILTERS, resize
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
    reduction: filter of 'none' and 'blur': 'area', by which images come to the size of a network
        of `low` pixels (`input_pipeline.images.center_crop`), 'bicubic' or 'bilinear'.
    noise: range of the noise conditioning augmentation (Ho et al., 2021): each low-resolution image
        has a level drawn from it, which the network is told; (0.0, 0.0): there is none.
    crop: side of the random crops of training as a share of the image's; 1.0: whole images.
        DALL-E 2 has 0.25; crops of a quarter of the area are 0.5.
    residual: the network's output is added to the enlarged low-resolution image (Kim et al., 2016),
        so that at its start it enlarges instead of making up, which saves most of a short training;
        with the parameterization 'x0'.
    sampling_noise: the level at sampling (Imagen: 0.1 to 0.3 look best, 0 has the best FID).
    held_out: split of config.data.source whose images are made large in `--mode=sample` and in
        previews. They are reduced as by 'none', whatever the degradation of training. Images of
        another model are made large by `sample`.
    """

    inputs = 2

    def __init__(
        self,
        config: ConfigDict,
        low: int,
        degradation: str = "blur",
        blur: float = 0.5,
        reduction: str = "area",
        noise: tuple[float, ...] = (0.0, 0.3),
        crop: float = 1.0,
        residual: bool = False,
        sampling_noise: float = 0.0,
        held_out: str = "test",
    ):
        size = config.data.image_size
        self.config = config
        self.low, self.degradation, self.blur = low, degradation, blur
        self.reduction = reduction
        self.noise, self.sampling_noise = tuple(noise), sampling_noise
        self.crop_side = round(crop * size)
        self._require(0 < low < size, f"low={low} must be below config.data.image_size = {size}")
        allowed = ", ".join(map(repr, DEGRADATIONS))
        self._require(degradation in DEGRADATIONS, f"degradation={degradation!r}: take {allowed}")
        allowed = ", ".join(map(repr, FILTERS))
        self._require(reduction in FILTERS, f"reduction={reduction!r}: take {allowed}")
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
            halvings = 2 ** (len(model.channel_mult) - 1) * model.get("patch_size", 1)
            self._require(
                self.crop_side % halvings == 0,
                f"crop={crop} gives {self.crop_side} px, which must be a multiple of {halvings} "
                "(config.model.channel_mult, patch_size)",
            )
        predicted = config.diffusion.parameterization
        self._require(
            not residual or predicted == "x0",
            "residual=True adds to the prediction of the image itself; set "
            f"config.diffusion.parameterization = 'x0' ({predicted!r} is another quantity)",
        )
        if self.noise[1] > 0:
            self.scalars = (AUGMENTATION,)
        super().__init__(config)
        self.network = self.network._replace(apply=_told_low(self.network, residual))
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
        small = degrade(images, degrade_rng, self.low, self.degradation, self.blur, self.reduction)
        low, high = self.noise
        level = jax.random.uniform(level_rng, images.shape[:1], minval=low, maxval=high)
        condition = self._told(small, level, jax.random.normal(noise_rng, small.shape))
        if self.crop_side < images.shape[1]:
            both = jnp.concatenate([images, condition[LOW]], axis=-1)
            crops = _crops(both, self.crop_side, self.low, crop_rng)
            images, condition[LOW] = jnp.split(crops, 2, axis=-1)
        return images, condition

    def _told(
        self,
        small: Float[Array, "batch low low channels"],
        level: Float[Array, " batch"],
        noise: Float[Array, "batch low low channels"],
    ) -> dict[str, Array]:
        """What the network is told of low-resolution images: enlarged, with noise of this level."""
        if self.scalars:
            small = add_noise(small, noise, level)
        told = {LOW: resize(small, self.image_shape[:2], "bicubic")}
        return told | ({AUGMENTATION: level} if self.scalars else {})

    def told(
        self,
        low: Float[Array, "batch low low channels"],
        key: Key[Array, ""],
        indices: Int[Array, " batch"],
    ) -> dict[str, Array]:
        """The condition under which samples of low-resolution images in [-1, 1] are drawn.

        The noise of `sampling_noise` on image i follows from the key and indices[i] alone.
        """
        keys = diffusion.sample_keys(key, indices)
        noise = jax.vmap(lambda key: jax.random.normal(key, low.shape[1:]))(keys)
        return self._told(low, jnp.full(len(low), self.sampling_noise, jnp.float32), noise)

    def sample(
        self,
        params: Any,
        low: Float[Array | np.ndarray, "batch low low channels"],
        key: Key[Array, ""],
        indices: Int[Array | np.ndarray, " batch"],
    ) -> Float[Array, "batch height width channels"]:
        """Images in [-1, 1], such as another model's samples, made large by `config.sample`.

        Row i follows from the parameters, low[i], the key and indices[i] alone. It is one program,
        compiled at the first call with a number of rows.

        Raises:
            ValueError: images of another side than the task's `low`.
        """
        if low.shape[1:] != (self.low, self.low, self.image_shape[2]):
            raise ValueError(
                f"low has shape {low.shape}: this upsampler takes images of {self.low} px a side, "
                f"[batch, {self.low}, {self.low}, {self.image_shape[2]}]"
            )
        return self._upsample(params, self._sampler.inputs(params), low, key, indices)

    @functools.cached_property
    def _sampler(self) -> sampler.Sampler:
        return sampler.build_sampler(self.config, self)

    @functools.cached_property
    def _upsample(self) -> Callable[..., Float[Array, "batch height width channels"]]:
        def upsample(params, inputs, low, key, indices):
            noise_key, key = jax.random.split(key)
            told = self.told(low, noise_key, indices)
            return self._sampler.draw(params, inputs, key, indices, jnp.zeros_like(indices), told)

        return jax.jit(upsample)

    @functools.cached_property
    def _reduce(self) -> Callable[..., dict[str, Array]]:
        """Images as they are stored, and their indices, to the condition of samples."""

        def reduce(images, indices):
            size = (self.low, self.low)
            small = resize(diffusion.to_model(images), size, self.reduction)
            return self.told(small, jax.random.key(0), indices)

        return jax.jit(reduce)

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
        told = self._reduce(self.true_images(indices), indices)
        return {name: np.asarray(value) for name, value in told.items()}

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
        indices = np.arange(self.config.log.preview_count, dtype=np.int32)
        told = self.sample_condition(indices)
        samples = self._sampler(params, rng, indices, np.zeros_like(indices), told)
        pictures = self.beside(np.asarray(diffusion.to_uint8(samples)), indices)
        return diffusion.to_model(jnp.asarray(pictures))


def _told_low(network: Network, residual: bool):
    """The network's call with the low-resolution image of the condition on its input channels.

    With `residual` it is added to the output, too.
    """

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
        raw = network.apply(params, x, time, rest or None, **kwargs)
        return raw + condition[LOW] if residual else raw

    return apply


def _crops(
    images: Float[Array, "batch size size channels"], side: int, low: int, rng: Key[Array, ""]
) -> Float[Array, "batch side side channels"]:
    """A random square of each image.

    Where low-resolution pixels are whole squares of pixels it begins with one, as whole images do:
    the network never sees another phase when it is applied.
    """
    size = images.shape[1]
    step = 1 if size % low else size // low
    corners = step * jax.random.randint(rng, (len(images), 2), 0, (size - side) // step + 1)

    def crop(image, corner):
        return jax.lax.dynamic_slice(image, (*corner, 0), (side, side, image.shape[-1]))

    return jax.vmap(crop)(images, corners)
