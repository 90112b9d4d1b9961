"""DDPM++ and NCSN++ of Song et al. (2021) in the form of EDM (Karras et al., 2022)."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from models.edm_blocks import EDMUNetConfig, xavier
from models.edm_unet import Condition, EDMUNet, Projection, look_up
from models.embeddings import sinusoidal
from models.functional import Network, functional
from models.layers import Linear


@dataclasses.dataclass(frozen=True)
class SongUNetConfig(EDMUNetConfig):
    """What DDPM++ or NCSN++ is; the fields are those of `song_unet` in configs/networks.py.

    DDPM++ is the default; NCSN++ is time_embedding='fourier', encoder='residual' and
    resample_filter=(1, 3, 3, 1) together.
    """

    time_embedding: str = "positional"
    encoder: str = "standard"
    resample_filter: tuple[int, ...] = (1, 1)

    choices: ClassVar = EDMUNetConfig.choices | {
        "time_embedding": ("positional", "fourier"),
        "encoder": ("standard", "residual"),
        "resample_filter": ((1, 1), (1, 3, 3, 1)),
    }
    scale_shift: ClassVar = False
    skip_scale: ClassVar = 0.5**0.5
    norm_eps: ClassVar = 1e-6
    init: ClassVar = "ddpm"
    last_gain: ClassVar = 1e-5
    attention_gain: ClassVar = 0.2**0.5
    attend_often: ClassVar = False

    @property
    def stem(self) -> int:
        """Channels of the first convolution, whatever the first level has."""
        return self.channels

    @property
    def time_channels(self) -> int:
        """Sines and cosines of time: twice as many for NCSN++."""
        return self.channels * (2 if self.time_embedding == "fourier" else 1)

    def heads(self, width: int) -> int:
        """One head, whatever the width."""
        return 1


class Fourier(nnx.Module):
    """Sines and cosines of time at fixed random frequencies (Tancik et al., 2020).

    The frequencies are a parameter, so that they are stored and a published network's can be
    read, but no gradient reaches it.
    """

    def __init__(self, channels: int, scale: float, rngs: nnx.Rngs):
        self.frequencies = nnx.Param(scale * jax.random.normal(rngs.params(), (channels // 2,)))

    def __call__(self, time: Num[Array, " batch"]) -> Float[Array, "batch channels"]:
        """[sin, cos] of 2 pi frequency time, float32."""
        frequencies = jax.lax.stop_gradient(self.frequencies[...])
        angle = time.astype(jnp.float32)[:, None] * (2 * math.pi * frequencies)
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class SongUNet(EDMUNet):
    """DDPM++ or NCSN++: label and augmentation are added to the sinusoids of time."""

    def __init__(self, config: SongUNetConfig, *, rngs: nnx.Rngs):
        width = config.time_channels
        super().__init__(config, width)
        fourier = config.time_embedding == "fourier"
        self.fourier = Fourier(width, 16.0, rngs) if fourier else None
        classes, augment = config.num_classes, config.augment_dim
        self.label = Linear(classes, width, init="ddpm", dtype="float32") if classes else None
        self.augment = Projection(xavier((augment, width))) if augment else None

    def embed(
        self, time: Num[Array, " batch"], condition: Condition
    ) -> Float[Array, "batch embedding"]:
        """See `EDMUNet`. "No label" is the label layer of zeros, which is its bias."""
        config = self.config
        if self.fourier is None:
            embedding = sinusoidal(time, config.channels, "ddpm")
        else:
            embedding = self.fourier(time)
        if self.label is not None:
            # One-hot vectors of norm sqrt(classes).
            table = self.label.kernel[...] * config.num_classes**0.5
            rows = look_up(table, condition["label"], config.null_class)
            embedding += rows + self.label.bias[...]
        embedding = self.add_augment(embedding, condition)
        return jax.nn.silu(self.time2(jax.nn.silu(self.time1(embedding))))


def make_song_unet(config: SongUNetConfig) -> Network:
    """DDPM++ or NCSN++ of `config` as pure functions."""
    return functional(lambda rngs: SongUNet(config, rngs=rngs))
