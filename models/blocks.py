"""What a U-Net is built of: residual blocks, attention after them, changes of resolution."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from models.attention import Context, SelfAttention
from models.convolution import Conv
from models.layers import GroupNorm, Linear, downsample, dropout, upsample
from models.spatial_transformer import SpatialTransformer
from models.unet_config import UNetConfig


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
    """A residual block and, where asked for, attention of level `level` of the config after it."""

    def __init__(
        self, config: UNetConfig, inputs: int, outputs: int, *, attention: bool, level: int
    ):
        self.residual = ResBlock(config, inputs, outputs)
        self.attention = _attention(config, outputs, level) if attention else None

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        embedding: Float[Array, "batch embedding"],
        key: PRNGKeyArray | None,
        context: Context | None = None,
    ) -> Float[Array, "batch height width channels_out"]:
        """See `ResBlock`; `context` is for the attention, if the config has one."""
        x = self.residual(x, embedding, key)
        return x if self.attention is None else self.attention(x, context)


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


def resampling(config: UNetConfig, channels: int, direction: str) -> ResBlock | ConvResample:
    """The way to half ('down') or twice ('up') the resolution."""
    if config.resample == "resblock":
        return ResBlock(config, channels, channels, resample=direction)
    return ConvResample(config, channels, direction)


def _attention(config: UNetConfig, channels: int, level: int) -> SelfAttention | SpatialTransformer:
    settings = {
        "heads": config.heads(channels),
        "context_dim": config.context_dim,
        "norm_groups": config.norm_groups,
        "init": config.init,
        "implementation": config.attention,
        "dtype": config.dtype,
    }
    if config.context == "cross":
        return SpatialTransformer(channels, depth=config.depths[level], **settings)
    return SelfAttention(channels, norm_eps=config.norm_eps, **settings)
