"""What the three U-Nets of EDM (DDPM++, NCSN++, ADM) are made of: settings, resampling, block."""

import abc
import dataclasses
import difflib
import itertools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from models.attention import SelfAttention
from models.convolution import Conv
from models.functional import uniform
from models.layers import GroupNorm, Linear, dropout

Image = Float[Array, "batch height width channels"]


@dataclasses.dataclass(frozen=True)
class EDMUNetConfig(abc.ABC):
    """Fields and checks that the U-Nets of EDM share; see `song_unet` in configs/networks.py.

    What an architecture fixes is a class variable of its subclass. Fields that cannot go together
    raise ValueError.
    """

    in_channels: int
    out_channels: int
    image_size: int
    channels: int = 128
    channel_mult: tuple[int, ...] = (2, 2, 2)
    num_res_blocks: int = 4
    attention_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.13
    num_classes: int = 0
    null_class: bool = False
    augment_dim: int = 0
    attention: str = "xla"
    remat: bool = False
    dtype: str = "float32"

    choices: ClassVar[dict[str, tuple]] = {
        "attention": ("xla", "cudnn"),
        "dtype": ("float32", "bfloat16"),
    }
    # How the embedding enters a block: shift and scale of the second norm, or a sum before it.
    scale_shift: ClassVar[bool]
    # Factor of every sum of a branch and its shortcut.
    skip_scale: ClassVar[float]
    norm_eps: ClassVar[float]
    # Initialization of layers; factor of it for the last layer of a branch, and for q, k and v
    # (None: as the other layers).
    init: ClassVar[str]
    last_gain: ClassVar[float]
    attention_gain: ClassVar[float | None]
    # Does every decoder block of an attention resolution attend, or only the last?
    attend_often: ClassVar[bool]
    resample_filter: ClassVar[tuple[int, ...]] = (1, 1)
    encoder: ClassVar[str] = "standard"

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.channels * mult for mult in self.channel_mult)

    @property
    @abc.abstractmethod
    def stem(self) -> int:
        """Channels of the first convolution."""

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Side of the feature map of each level in pixels, finest first."""
        return tuple(self.image_size >> level for level in range(len(self.channel_mult)))

    @abc.abstractmethod
    def heads(self, width: int) -> int:
        """Attention heads of a feature map of `width` channels."""

    def __post_init__(self):
        for name, allowed in self.choices.items():
            value = getattr(self, name)
            if value not in allowed:
                near = difflib.get_close_matches(str(value), map(str, allowed), 1, cutoff=0)[0]
                options = ", ".join(map(str, allowed))
                raise ValueError(f"{name}={value!r}: allowed are {options}; did you mean {near!r}?")
        for name in ("in_channels", "out_channels", "image_size", "num_res_blocks"):
            self.require(name, getattr(self, name) > 0, "must be positive")
        for name in ("num_classes", "augment_dim"):
            self.require(name, getattr(self, name) >= 0, "must not be negative")
        self.require("dropout", 0 <= self.dropout < 1, "must be in [0, 1)")
        self.require("channel_mult", len(self.channel_mult) > 0, "needs at least one level")
        # Half of the time embedding are sines, half cosines; a group of a norm has four channels.
        whole = self.channels > 0 and self.channels % 4 == 0
        self.require("channels", whole, "must be a positive multiple of 4")
        self.require("null_class", self.num_classes or not self.null_class, "needs num_classes")
        flash = self.attention == "xla" or self.dtype == "bfloat16"
        self.require("attention", flash, "needs dtype='bfloat16'; in float32 it is 'xla'")

        levels, sizes = len(self.channel_mult), self.resolutions
        whole = self.image_size % 2 ** (levels - 1) == 0
        message = f"must be a multiple of {2 ** (levels - 1)}: channel_mult has {levels} levels"
        self.require("image_size", whole, message)
        known = set(self.attention_resolutions) <= set(sizes)
        self.require("attention_resolutions", known, f"the levels have {sizes}")
        # The decoder normalizes a feature map together with a skip of its own or the next width.
        near = [self.stem, *self.widths]
        normed = {*near, *(2 * w for w in near)} | {a + b for a, b in itertools.pairwise(near)}
        uneven = sorted(width for width in normed if width % norm_groups(width))
        message = f"gives norms of {uneven} channels; above 128 they must be multiples of 32"
        self.require("channels", not uneven, message)

    def require(self, name: str, condition, message: str) -> None:
        """Raises ValueError with the field's name and value unless `condition` holds."""
        if not condition:
            raise ValueError(f"{name}={getattr(self, name)!r}: {message}")


def norm_groups(channels: int) -> int:
    """32 groups, fewer where a group would have less than four channels."""
    return min(32, channels // 4)


def norm(config: EDMUNetConfig, channels: int) -> GroupNorm:
    """Group normalization as `config` says."""
    return GroupNorm(channels, norm_groups(channels), config.norm_eps)


def xavier(shape: tuple[int, ...], gain: float = 1.0) -> nnx.Param:
    """Kernel [*window, in, out] from U(-b, b), b = gain sqrt(6 / (fan_in + fan_out))."""
    return uniform(shape, gain * (6 / (math.prod(shape[:-2]) * sum(shape[-2:]))) ** 0.5)


def last(layer: Conv | Linear, config: EDMUNetConfig) -> Conv | Linear:
    """`layer`, which was made with zeros, initialized as the last of a branch."""
    if config.last_gain:
        layer.kernel = xavier(layer.kernel.shape, config.last_gain)
    return layer


def downsample(
    x: Image, taps: tuple[int, ...], padding: int
) -> Float[Array, "batch height_half width_half channels"]:
    """Low pass by `taps` (an even number of them) on both axes, then every second pixel.

    `padding` zeros are put around first; len(taps) // 2 - 1 of them halve the resolution exactly.
    """
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    for axis in (1, 2):
        stop = x.shape[axis] - len(taps) + 1
        shifts = [lax.slice_in_dim(x, k, k + stop, 2, axis) for k in range(len(taps))]
        x = sum(tap / sum(taps) * shift for tap, shift in zip(taps, shifts, strict=True))
    return x


def upsample(
    x: Image, taps: tuple[int, ...]
) -> Float[Array, "batch height_twice width_twice channels"]:
    """Zeros between the pixels, then low pass by `taps`: the transpose of `downsample`, times 4."""
    for axis in (1, 2):
        phases = [_phase(x, taps, axis, number) for number in (0, 1)]
        shape = [n * 2 if i == axis else n for i, n in enumerate(x.shape)]
        x = jnp.stack(phases, axis=axis + 1).reshape(shape)
    return x


def _phase(x: Image, taps: tuple[int, ...], axis: int, number: int) -> Image:
    """Outputs 2 i + number of `upsample`: a sum over the taps that do not fall on zeros."""
    padding, size = len(taps) // 2 - 1, x.shape[axis]
    reach = (padding + 1) // 2
    x = jnp.pad(x, [(reach, reach) if i == axis else (0, 0) for i in range(4)])
    total = 0
    for k in range((number + padding) % 2, len(taps), 2):
        start = reach + (number + padding - k) // 2
        shift = lax.slice_in_dim(x, start, start + size, axis=axis)
        total += 2 * taps[k] / sum(taps) * shift
    return total


class Block(nnx.Module):
    """A BigGAN residual block and, where asked for, self-attention (Karras et al., 2022).

    resample: 'down' or 'up' changes the resolution before the first convolution and on the
        shortcut alike; None keeps it. Resampling shortcuts of Song's networks have a projection.
    """

    def __init__(
        self,
        config: EDMUNetConfig,
        inputs: int,
        outputs: int,
        *,
        resample: str | None = None,
        attention: bool = False,
    ):
        self.config, self.resample = config, resample
        settings = {"init": config.init, "dtype": config.dtype}
        self.norm1 = norm(config, inputs)
        self.conv1 = Conv(inputs, outputs, **settings)
        parts = 2 if config.scale_shift else 1
        self.condition = Linear(4 * config.channels, parts * outputs, **settings)
        self.norm2 = norm(config, outputs)
        self.conv2 = last(Conv(outputs, outputs, zero=True, **settings), config)
        projected = inputs != outputs or (resample and not config.scale_shift)
        self.shortcut = Linear(inputs, outputs, **settings) if projected else None
        self.attention = _attention(config, outputs) if attention else None

    def __call__(
        self,
        x: Image,
        embedding: Float[Array, "batch embedding"],
        key: PRNGKeyArray | None,
    ) -> Float[Array, "batch height_out width_out channels_out"]:
        """`embedding` is what the network is told of time and condition, after its activation."""
        config = self.config
        h = self.conv1(self._resample(jax.nn.silu(self.norm1(x))))
        condition = self.condition(embedding)
        if config.scale_shift:
            scale, shift = jnp.split(condition, 2, axis=-1)
            h = self.norm2(h, scale, shift)
        else:
            h = self.norm2(h + condition[:, None, None])
        h = self.conv2(dropout(jax.nn.silu(h), config.dropout, key))
        x = self._resample(x)
        x = (h + (x if self.shortcut is None else self.shortcut(x))) * config.skip_scale
        return x if self.attention is None else self.attention(x) * config.skip_scale

    def _resample(self, x: Image) -> Float[Array, "batch height_out width_out channels"]:
        taps = self.config.resample_filter
        if self.resample == "down":
            return downsample(x, taps, len(taps) // 2 - 1)
        return upsample(x, taps) if self.resample == "up" else x


def _attention(config: EDMUNetConfig, channels: int) -> SelfAttention:
    attention = SelfAttention(
        channels,
        heads=config.heads(channels),
        norm_groups=norm_groups(channels),
        norm_eps=config.norm_eps,
        init=config.init,
        implementation=config.attention,
        dtype=config.dtype,
    )
    if config.attention_gain is not None:
        # The fan out is that of q, k and v together.
        attention.qkv.kernel = xavier(attention.qkv.kernel.shape, config.attention_gain)
    last(attention.projection, config)
    return attention


class Pyramid(nnx.Module):
    """Step of NCSN++'s input pyramid: convolution and low pass to half the resolution.

    Zeros are put around once, before both, so what the low pass sees beyond the border is the
    convolution continued and not zero.
    """

    def __init__(self, config: EDMUNetConfig, inputs: int, outputs: int):
        self.taps = config.resample_filter
        # The convolution's own padding and the low pass's.
        padding = len(self.taps) // 2
        self.conv = Conv(
            inputs, outputs, padding=(padding, padding), init=config.init, dtype=config.dtype
        )

    def __call__(self, x: Image) -> Float[Array, "batch height_half width_half channels_out"]:
        """The next coarser step of the pyramid."""
        return downsample(self.conv(x), self.taps, 0)
