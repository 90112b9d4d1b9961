"""ADM of Dhariwal and Nichol (2021) in the form of EDM (Karras et al., 2022)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from models.edm_blocks import EDMUNetConfig
from models.edm_unet import Condition, EDMUNet, Projection, look_up
from models.embeddings import sinusoidal
from models.functional import Network, functional


@dataclasses.dataclass(frozen=True)
class DhariwalUNetConfig(EDMUNetConfig):
    """What EDM's ADM is; the fields are those of `dhariwal_unet` in configs/networks.py."""

    channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    num_res_blocks: int = 3
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    dropout: float = 0.1
    head_channels: int = 64

    scale_shift: ClassVar = True
    skip_scale: ClassVar = 1.0
    norm_eps: ClassVar = 1e-5
    init: ClassVar = "torch"
    last_gain: ClassVar = 0.0
    attention_gain: ClassVar = None
    attend_often: ClassVar = True

    @property
    def stem(self) -> int:
        """Channels of the first convolution: those of the first level."""
        return self.widths[0]

    def heads(self, width: int) -> int:
        """Attention heads of a feature map of `width` channels."""
        return width // self.head_channels

    def __post_init__(self):
        super().__post_init__()
        levels = zip(self.widths, self.resolutions, strict=True)
        attended = {width for width, size in levels if size in self.attention_resolutions}
        attended = sorted({*attended, self.widths[-1]})
        split = self.head_channels > 0 and not any(w % self.head_channels for w in attended)
        message = f"must divide the channels of levels with attention and of the last, {attended}"
        self.require("head_channels", split, message)


class DhariwalUNet(EDMUNet):
    """ADM: augmentation is added to the sinusoids of time, the label to their embedding.

    Beside guided-diffusion's network this one can be told of an augmentation, "no label" is the
    zero vector and no row of its own, and its variance is not learned.
    """

    def __init__(self, config: DhariwalUNetConfig, *, rngs: nnx.Rngs):
        super().__init__(config, config.channels)
        classes, augment, width = config.num_classes, config.augment_dim, config.channels
        normal = nnx.initializers.normal(1.0)
        rows = nnx.Param(normal(rngs.params(), (classes, 4 * width))) if classes else None
        self.label = Projection(rows) if classes else None
        self.augment = Projection(nnx.Param(jnp.zeros((augment, width)))) if augment else None

    def embed(
        self, time: Num[Array, " batch"], condition: Condition
    ) -> Float[Array, "batch embedding"]:
        """See `EDMUNet`."""
        embedding = sinusoidal(time, self.config.channels, "adm")
        embedding = self.add_augment(embedding, condition)
        embedding = self.time2(jax.nn.silu(self.time1(embedding)))
        if self.label is not None:
            embedding += look_up(self.label.kernel[...], condition["label"], self.config.null_class)
        return jax.nn.silu(embedding)


def make_dhariwal_unet(config: DhariwalUNetConfig) -> Network:
    """EDM's ADM of `config` as pure functions."""
    return functional(lambda rngs: DhariwalUNet(config, rngs=rngs))
