"""The decoder of unCLIP: images of CLIP image embeddings and captions (Ramesh et al. 2022)."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Shaped, UInt8
from ml_collections import ConfigDict

import diffusion
from input_pipeline.decoder import Decoder
from input_pipeline.resize import resize
from models.caption import NO_IMAGE, NO_TEXT
from models.unclip_decoder import UnCLIPDecoderConfig
from models.unclip_dit import UnCLIPDiTConfig
from training import frozen_clip, guidance, held_out
from training.components import ConfigError
from training.sampler import Sampler, build_sampler
from training.tasks.diffusion import DiffusionTask

Fields = Mapping[str, Shaped[Array | np.ndarray, "batch ..."]]
_SETTINGS = {"unclip_decoder": UnCLIPDecoderConfig, "unclip_dit": UnCLIPDiTConfig}
# Types of a batch's fields that are not float32.
_TYPES = {"tokens": jnp.int32, "text_mask": jnp.bool_}


class DecoderTask(DiffusionTask):
    """Trains a U-Net or a DiT on images, their CLIP embeddings and captions.

    The network is `unclip_decoder` or `unclip_dit`.

    Embedding and caption are withheld independently (section 2.1).

    size: side of the images that are modelled; 0: config.data.image_size. To a smaller one images
        are reduced on the device by means of areas, as an upsampler's are.
    embedding_dropout: rate at which the image embedding is withheld.
    caption_dropout: rate at which the caption is withheld; of no effect without one.
    held_out: split of config.data.source that samples and previews are made from.
    clip: work directory of a CLIP that embeds images and captions inside the step; '': the data
        have the embeddings (`training.frozen_clip`).
    guided_by: what guidance makes more of, by comparing with its absence: 'both', or the 'caption',
        where the image embedding is told to either side. Both are seldom absent in training.
    """

    def __init__(
        self,
        config: ConfigDict,
        size: int = 0,
        embedding_dropout: float = 0.1,
        caption_dropout: float = 0.5,
        held_out: str = "test",
        clip: str = "",
        guided_by: str = "both",
    ):
        self.config = config
        full = config.data.image_size
        self._require(
            0 <= size < full,
            f"size={size} must be below config.data.image_size = {full}, or 0 for that size",
        )
        for name, rate in (
            ("embedding_dropout", embedding_dropout),
            ("caption_dropout", caption_dropout),
        ):
            self._require(0.0 <= rate <= 1.0, f"{name}={rate} is a probability, from 0 to 1")
        self._require(
            guided_by in ("both", "caption"),
            f"guided_by={guided_by!r} must be 'both' or 'caption'",
        )
        for field, value, wanted in (
            ("data.field", config.data.field, "image"),
            ("data.device_augmentation", config.data.device_augmentation, ""),
        ):
            self._require(value == wanted, f"config.{field} must be {wanted!r}, not {value!r}")
        model = config.model.to_dict()
        network, known = model.pop("name"), ", ".join(map(repr, _SETTINGS))
        if network not in _SETTINGS:
            raise ConfigError(f"config.model.name must be one of {known}, not {network!r}")
        self.side = size
        super().__init__(config)
        described = _SETTINGS[network](config.data.channels, 1, self.image_shape[0], **model)
        self.shapes, self.caption = described.shapes, described.caption
        self.embeddings = frozen_clip.Embeddings(config, clip, self.shapes)
        self.teachers = self.embeddings.teachers
        self.rates = {NO_IMAGE: embedding_dropout}
        if self.caption:
            self.rates[NO_TEXT] = caption_dropout
        self._absent = (NO_TEXT,) if guided_by == "caption" else (NO_IMAGE, NO_TEXT)
        self._held_out = held_out

    def _require(self, condition: bool, message: str) -> None:
        if not condition:
            raise ConfigError(f"config.task = {self.config.task!r}: {message}")

    @property
    def null(self) -> dict[str, np.bool_] | None:
        """What guidance compares with; None where that is never withheld in training."""
        rates = {name: self.rates.get(name, 0.0) for name in self._absent}
        return {name: np.bool_(True) for name, rate in rates.items() if rate} or None

    def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Images of the data's size as uint8, and fields of embeddings or what they are made of."""
        data = self.config.data
        shape = (batch_size, data.image_size, data.image_size, data.channels)
        image = {"image": jax.ShapeDtypeStruct(shape, jnp.uint8)}
        return image | self.embeddings.spec(batch_size)

    def loss(
        self, params, state: dict, batch: Mapping, rng: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], dict]]:
        """Mean of the objective over the batch; a frozen CLIP embeds it first."""
        batch, state = self.embeddings.fill(batch, state)
        return super().loss(params, state, batch, rng)

    def told(self, given: Fields) -> dict[str, Shaped[Array, "batch ..."]]:
        """The network's condition by fields of a batch; embeddings and captions are found here.

        Where the image embedding, or all of the caption, is not given, it is withheld; so are rows
        that 'no_image' and 'no_text' of `given` say.

        Raises:
            ValueError: a part of a caption is missing, or all is.
        """
        there = [name for name in self.shapes if name in given]
        words = [name for name in self.caption if name in given]
        if not there or (words and len(words) < len(self.caption)):
            raise ValueError(
                f"told {sorted(given)}: a decoder takes {sorted(self.shapes)}; the image embedding "
                "or all of the caption may be left out, not both"
            )
        count = len(given[there[0]])
        condition = {}
        for name, shape in self.shapes.items():
            kind = _TYPES.get(name, jnp.float32)
            value = given[name] if name in given else jnp.zeros((count, *shape))
            condition[name] = jnp.asarray(value, kind)
        absent = {NO_IMAGE: "image_embedding" not in given, NO_TEXT: not words}
        for name in self.rates:
            rows = jnp.asarray(given.get(name, False), bool)
            condition[name] = jnp.broadcast_to(rows | absent[name], (count,))
        return condition

    def condition(self, batch: Fields, rng: Key[Array, ""]) -> dict:
        """What the network is told, withheld at both rates."""
        told = self.told(batch)
        for key, (name, rate) in zip(jax.random.split(rng), self.rates.items(), strict=False):
            drop: Bool[Array, " batch"] = jax.random.bernoulli(key, rate, told[name].shape)
            told[name] |= drop
        return told

    def examples(
        self, batch: Fields, label_rng: Key[Array, ""], augment_rng: Key[Array, ""]
    ) -> tuple[Float[Array, "batch height width channels"], dict | None]:
        """(images of the modelled size, what the network is told of them)."""
        images, condition = super().examples(batch, label_rng, augment_rng)
        return self._reduced(images), condition

    def _reduced(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch size size channels"]:
        return resize(images, self.image_shape[:2], "area") if self.side else images

    @functools.cached_property
    def sampler(self) -> Sampler:
        """Of `config.sample`, without guidances by other networks."""
        return build_sampler(self.config, self)

    def sample(
        self,
        params: Any,
        condition: Fields,
        key: Key[Array, ""],
        indices: Int[Array | np.ndarray, " batch"] | None = None,
        guidances: Sequence[str] | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """Images in [-1, 1] of embeddings and captions, compiled once for each batch size.

        condition: fields of a batch, as `told` takes them.
        indices: numbers of the samples, by default 0, 1, ...; a sample depends on key, its own
            number and its own condition.
        guidances: in place of config.sample.guidance; they may differ in numbers only, which
            compiles nothing anew.

        Raises:
            ConfigError: guidances of another form, or that need another network.
        """
        told = self.told(condition)
        count = len(told["image_embedding"])
        indices = np.arange(count, dtype=np.int32) if indices is None else indices
        labels = np.zeros(count, np.int32)
        chosen = self._guidances(guidances)
        return self.sampler(params, key, indices, labels, told, chosen)

    def _guidances(self, names: Sequence[str] | None) -> tuple[diffusion.Guidance, ...]:
        configured = self.config.sample.guidance
        items = guidance.build_all(configured if names is None else names)
        form, wanted = (jax.tree.structure(each) for each in (items, self.sampler.guidances))
        other = [item for item in items if item.companion]
        if form != wanted or other:
            raise ConfigError(
                f"{guidance.FIELD}: {tuple(configured if names is None else names)} must be those "
                f"of the config, {tuple(configured)}, but for their numbers, and none by another "
                "network"
            )
        return jax.tree.map(guidance.as_array, items)

    @functools.cached_property
    def _reader(self) -> Decoder:
        fields = dict.fromkeys(("image", *self.embeddings.of_source))
        return held_out.reader(self.config, self._held_out, tuple(fields))

    def sample_condition(self, indices: Int[np.ndarray, " batch"]) -> dict[str, np.ndarray]:
        """What the network is told of samples: sample i is of example i of the held-out split."""
        given = self.embeddings.complete(held_out.examples(self._reader, indices))
        return jax.tree.map(np.asarray, self.told(given))

    def true_images(
        self, indices: Int[np.ndarray, " batch"]
    ) -> UInt8[np.ndarray, "batch height width channels"]:
        """Held-out images at the modelled size."""
        images = held_out.examples(self._reader, indices)["image"]
        reduced = self._reduced(diffusion.to_model(jnp.asarray(images)))
        return np.asarray(diffusion.to_uint8(reduced))

    def beside(
        self,
        images: UInt8[np.ndarray, "batch height width channels"],
        indices: Int[np.ndarray, " batch"],
    ) -> UInt8[np.ndarray, "batch height two_widths channels"]:
        """For each sample: the sample, the image whose embedding and caption it is of."""
        return np.concatenate([images, self.true_images(indices)], axis=2)

    def preview(
        self, params: Any, rng: Key[Array, ""]
    ) -> Float[Array, "count height width channels"]:
        """Samples, and the true images beside them."""
        indices = np.arange(self.config.log.preview_count, dtype=np.int32)
        told = self.sample_condition(indices)
        samples = self.sampler(params, rng, indices, np.zeros_like(indices), told)
        pictures = self.beside(np.asarray(diffusion.to_uint8(samples)), indices)
        return diffusion.to_model(jnp.asarray(pictures))
