"""The U-Net of DDPM (Ho et al., 2020) and ADM (Dhariwal and Nichol, 2021): two settings of one."""

import dataclasses
import difflib

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

from models.attention import SelfAttention
from models.convolution import Conv
from models.embeddings import sinusoidal
from models.functional import Network, functional
from models.layers import GroupNorm, Linear, downsample, dropout, upsample

_CHOICES = {
    "conditioning": ("add", "scale_shift"),
    "resample": ("conv", "conv_symmetric", "resblock"),
    "time_embedding": ("ddpm", "adm"),
    "init": ("ddpm", "torch"),
    "attention": ("xla", "cudnn"),
    "dtype": ("float32", "bfloat16"),
}


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """What a U-Net is. The fields from `channels` on are those of `unet` in configs/networks.py.

    `resample` has one value more than DDPM and ADM need: 'conv_symmetric' pads the strided
    convolution by one on every side (improved-diffusion), where 'conv' pads (0, 1) (DDPM).
    Fields that cannot go together raise ValueError.
    """

    in_channels: int
    out_channels: int
    image_size: int
    channels: int = 128
    channel_mult: tuple[int | float, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    num_heads: int = 1
    head_channels: int = 0
    dropout: float = 0.1
    conditioning: str = "add"
    resample: str = "conv"
    time_embedding: str = "ddpm"
    norm_groups: int = 32
    norm_eps: float = 1e-6
    init: str = "ddpm"
    num_classes: int = 0
    null_class: bool = False
    attention: str = "xla"
    remat: bool = False
    dtype: str = "float32"

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(round(self.channels * mult) for mult in self.channel_mult)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Side of the feature map of each level in pixels, finest first."""
        return tuple(self.image_size >> level for level in range(len(self.channel_mult)))

    def heads(self, width: int) -> int:
        """Attention heads of a feature map of `width` channels."""
        return width // self.head_channels if self.head_channels else self.num_heads

    def __post_init__(self):
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                near = difflib.get_close_matches(str(value), allowed, 1, cutoff=0)[0]
                options = ", ".join(allowed)
                raise ValueError(f"{name}={value!r}: allowed are {options}; did you mean {near!r}?")
        for name in ("in_channels", "out_channels", "image_size", "num_res_blocks", "num_heads"):
            self._require(name, getattr(self, name) > 0, "must be positive")
        for name in ("num_classes", "head_channels"):
            self._require(name, getattr(self, name) >= 0, "must not be negative")
        self._require("norm_groups", self.norm_groups > 0, "must be positive")
        self._require("dropout", 0 <= self.dropout < 1, "must be in [0, 1)")
        self._require("channel_mult", len(self.channel_mult) > 0, "needs at least one level")
        # Half of the time embedding are sines, half cosines.
        even = self.channels >= 4 and self.channels % 2 == 0
        self._require("channels", even, "must be even and at least 4")
        self._require("null_class", self.num_classes or not self.null_class, "needs num_classes")
        flash = self.attention == "xla" or self.dtype == "bfloat16"
        self._require("attention", flash, "needs dtype='bfloat16'; in float32 it is 'xla'")

        levels, sizes, widths = len(self.channel_mult), self.resolutions, self.widths
        whole = self.image_size % 2 ** (levels - 1) == 0
        message = f"must be a multiple of {2 ** (levels - 1)}: channel_mult has {levels} levels"
        self._require("image_size", whole, message)
        known = set(self.attention_resolutions) <= set(sizes)
        self._require("attention_resolutions", known, f"the levels have {sizes}")
        grouped = all(width % self.norm_groups == 0 for width in widths)
        message = f"must divide the channels of every level, {widths}"
        self._require("norm_groups", grouped, message)
        attended = [
            w for w, s in zip(widths, sizes, strict=True) if s in self.attention_resolutions
        ]
        attended = sorted({*attended, widths[-1]})
        name = "head_channels" if self.head_channels else "num_heads"
        split = all(width % getattr(self, name) == 0 for width in attended)
        message = f"must divide the channels of levels with attention and of the last, {attended}"
        self._require(name, split, message)

    def _require(self, name: str, condition, message: str) -> None:
        if not condition:
            raise ValueError(f"{name}={getattr(self, name)!r}: {message}")


class ResBlock(nnx.Module):
    """norm, silu, conv, condition, norm, silu, dropout, conv, plus a shortcut from the input.

    resample: 'down' (mean of 2 x 2) or 'up' (nearest) changes the resolution before the first
        convolution and on the shortcut alike (BigGAN); None keeps it.

    The last convolution starts at zero, so at initialization the block is its shortcut.
    """

    def __init__(
        self,
        config: UNetConfig,
        inputs: int,
        outputs: int,
        *,
        resample: str | None = None,
    ):
        self.rate = config.dropout
        self.resample = {"down": downsample, "up": upsample, None: lambda x: x}[resample]
        self.scale_shift = config.conditioning == "scale_shift"
        settings = {"init": config.init, "dtype": config.dtype}
        self.norm1 = GroupNorm(inputs, config.norm_groups, config.norm_eps)
        self.conv1 = Conv(inputs, outputs, **settings)
        parts = 2 if self.scale_shift else 1
        self.condition = Linear(4 * config.channels, parts * outputs, **settings)
        self.norm2 = GroupNorm(outputs, config.norm_groups, config.norm_eps)
        self.conv2 = Conv(outputs, outputs, zero=True, **settings)
        self.shortcut = Linear(inputs, outputs, **settings) if inputs != outputs else None

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        embedding: Float[Array, "batch embedding"],
        key: PRNGKeyArray | None,
    ) -> Float[Array, "batch height_out width_out channels_out"]:
        """`embedding` is what the network is told of time and label, after its activation."""
        h = self.conv1(self.resample(jax.nn.silu(self.norm1(x))))
        condition = self.condition(embedding)
        if self.scale_shift:
            scale, shift = jnp.split(condition, 2, axis=-1)
            h = self.norm2(h, scale, shift)
        else:
            h = self.norm2(h + condition[:, None, None])
        h = self.conv2(dropout(jax.nn.silu(h), self.rate, key))
        x = self.resample(x)
        return h + (x if self.shortcut is None else self.shortcut(x))


class Block(nnx.Module):
    """A residual block and, where asked for, self-attention after it."""

    def __init__(self, config: UNetConfig, inputs: int, outputs: int, *, attention: bool):
        self.residual = ResBlock(config, inputs, outputs)
        self.attention = _attention(config, outputs) if attention else None

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        embedding: Float[Array, "batch embedding"],
        key: PRNGKeyArray | None,
    ) -> Float[Array, "batch height width channels_out"]:
        """See `ResBlock`."""
        x = self.residual(x, embedding, key)
        return x if self.attention is None else self.attention(x)


class ConvResample(nnx.Module):
    """Strided convolution to half the resolution, or nearest neighbour and convolution to twice."""

    def __init__(self, config: UNetConfig, channels: int, direction: str):
        self.up = direction == "up"
        symmetric = self.up or config.resample == "conv_symmetric"
        self.conv = Conv(
            channels,
            channels,
            stride=1 if self.up else 2,
            padding=(1, 1) if symmetric else (0, 1),
            init=config.init,
            dtype=config.dtype,
        )

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        embedding: Float[Array, "batch embedding"],
        key: PRNGKeyArray | None,
    ) -> Float[Array, "batch height_out width_out channels"]:
        """`embedding` and `key` are there for the signature of `ResBlock`; they are not used."""
        return self.conv(upsample(x) if self.up else x)


class Level(nnx.Module):
    """The blocks of one resolution of encoder or decoder, then the way to the next resolution."""

    def __init__(self, blocks: list[Block], resample: ResBlock | ConvResample | None):
        self.blocks = nnx.List(blocks)
        self.resample = resample


class UNet(nnx.Module):
    """Encoder, middle and decoder over image x, told of time and (by config) of a label.

    In the encoder the first convolution and every block and resampling leave a skip, which the
    decoder's blocks take in turn, last first, beside their input.
    """

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        widths = config.widths
        embedding = 4 * config.channels
        # Time and output stay float32: few operations, and what is lost there is lost for all.
        exact = {"init": config.init, "dtype": "float32"}
        self.time1 = Linear(config.channels, embedding, **exact)
        self.time2 = Linear(embedding, embedding, **exact)
        rows = config.num_classes + config.null_class
        normal = nnx.initializers.normal(1.0)
        self.label = nnx.Embed(rows, embedding, embedding_init=normal, rngs=rngs) if rows else None
        self.conv_in = Conv(config.in_channels, widths[0], init=config.init, dtype=config.dtype)

        width, skips = widths[0], [widths[0]]
        encoder, decoder = [], []
        for level, outputs in enumerate(widths):
            attention = config.resolutions[level] in config.attention_resolutions
            blocks = []
            for _ in range(config.num_res_blocks):
                blocks.append(Block(config, width, outputs, attention=attention))
                width = outputs
                skips.append(width)
            resample = None
            if level < len(widths) - 1:
                resample = _resample(config, width, "down")
                skips.append(width)
            encoder.append(Level(blocks, resample))
        self.encoder = nnx.List(encoder)

        self.middle = nnx.List(
            [Block(config, width, width, attention=where) for where in (True, False)]
        )

        for level, outputs in reversed(list(enumerate(widths))):
            attention = config.resolutions[level] in config.attention_resolutions
            blocks = []
            for _ in range(config.num_res_blocks + 1):
                inputs = width + skips.pop()
                blocks.append(Block(config, inputs, outputs, attention=attention))
                width = outputs
            resample = _resample(config, width, "up") if level else None
            decoder.append(Level(blocks, resample))
        self.decoder = nnx.List(decoder)

        self.norm_out = GroupNorm(width, config.norm_groups, config.norm_eps)
        self.conv_out = Conv(width, config.out_channels, zero=True, **exact)

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        time: Num[Array, " batch"],
        condition: dict[str, Int[Array, " batch"]] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch height width channels_out"]:
        """Raw output, float32; what it means is the parameterization's business.

        time: any real number; the integer index of the step for a network that is trained so.
        condition: {'label': int [batch]} if the config has classes, where with null_class the
            label num_classes means "no label"; otherwise None. A label beyond that gives NaN.
        rngs: with a 'dropout' stream in training; None turns dropout off.
        """
        config = self.config
        embedding = self._embed(time, condition).astype(config.dtype)

        def run(block, h):
            key = None if rngs is None or config.dropout == 0 else rngs.dropout()
            function = jax.checkpoint(block.__call__) if config.remat else block
            return function(h, embedding, key)

        h = self.conv_in(x.astype(config.dtype))
        skips = [h]
        for level in self.encoder:
            for block in level.blocks:
                h = run(block, h)
                skips.append(h)
            if level.resample is not None:
                h = run(level.resample, h)
                skips.append(h)
        for block in self.middle:
            h = run(block, h)
        for level in self.decoder:
            for block in level.blocks:
                h = run(block, jnp.concatenate([h, skips.pop()], axis=-1))
            if level.resample is not None:
                h = run(level.resample, h)
        return self.conv_out(jax.nn.silu(self.norm_out(h.astype(jnp.float32))))

    def _embed(self, time, condition) -> Float[Array, "batch embedding"]:
        embedding = sinusoidal(time, self.config.channels, self.config.time_embedding)
        embedding = self.time2(jax.nn.silu(self.time1(embedding)))
        given, wanted = sorted(condition or ()), ["label"] if self.label is not None else []
        if given != wanted:
            raise ValueError(
                f"condition has {given}, but a U-Net with num_classes={self.config.num_classes} "
                f"takes {wanted or None}"
            )
        if self.label is not None:
            embedding += self.label(condition["label"])
        return jax.nn.silu(embedding)


def make_unet(config: UNetConfig) -> Network:
    """The U-Net of `config` as pure functions."""
    return functional(lambda rngs: UNet(config, rngs=rngs))


def _attention(config: UNetConfig, channels: int) -> SelfAttention:
    return SelfAttention(
        channels,
        heads=config.heads(channels),
        norm_groups=config.norm_groups,
        norm_eps=config.norm_eps,
        init=config.init,
        implementation=config.attention,
        dtype=config.dtype,
    )


def _resample(config: UNetConfig, channels: int, direction: str):
    if config.resample == "resblock":
        return ResBlock(config, channels, channels, resample=direction)
    return ConvResample(config, channels, direction)
