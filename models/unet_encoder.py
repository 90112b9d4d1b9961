"""The encoder half of the U-Net as a classifier of noisy images (Dhariwal and Nichol, 2021)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from models.attention import attend
from models.blocks import Block, Level, resampling
from models.convolution import Conv
from models.embeddings import sinusoidal
from models.functional import Network, functional, normal
from models.layers import GroupNorm, Linear, space_to_depth
from models.unet_config import UNetConfig


@dataclasses.dataclass(frozen=True)
class UNetEncoderConfig(UNetConfig):
    """What an encoder is; `out_channels` are its outputs. Fields: `unet_encoder` of the configs.

    Of the U-Net's conditions it has time alone: `num_classes` is what it tells, not what it is
    told.
    """

    pool: str = "attention"

    def __post_init__(self):
        super().__post_init__()
        known = self.pool in ("attention", "mean")
        self._require("pool", known, "allowed are 'attention' and 'mean'")
        if self.pool == "attention":
            name, width = "head_channels" if self.head_channels else "num_heads", self.widths[-1]
            split = width % getattr(self, name) == 0
            self._require(
                name, split, f"must divide the channels that the pool attends to, {width}"
            )
        for name in ("null_class", "context_dim", "embedding_dim", "fourier_features"):
            self._require(name, not getattr(self, name), "an encoder is told time alone")


class AttentionPool(nnx.Module):
    """One vector of a feature map: the mean of its positions attends to itself and to all of them.

    As in CLIP and ADM: the positions have learned embeddings, and one linear layer makes queries,
    keys and values, its output axis (q | k | v, head, channel).
    """

    def __init__(self, config: UNetEncoderConfig, width: int, side: int):
        self.heads = config.heads(width)
        self.positions = normal((side**2 + 1, width), width**-0.5)
        exact = {"init": config.init, "dtype": "float32"}
        self.qkv = Linear(width, 3 * width, parts=3, **exact)
        self.projection = Linear(width, config.out_channels, **exact)

    def pooled(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch channels"]:
        """The mean is token 0; what it attends to is the vector, before the last layer."""
        batch, *_, channels = x.shape
        tokens = x.reshape(batch, -1, channels)
        tokens = jnp.concatenate([tokens.mean(1, keepdims=True), tokens], axis=1)
        qkv = self.qkv(tokens + self.positions[...])
        qkv = qkv.reshape(batch, -1, 3, self.heads, channels // self.heads)
        # Only the first query's answer is wanted.
        out = attend(qkv[:, :1, 0], qkv[:, :, 1], qkv[:, :, 2], implementation="xla")
        return out.reshape(batch, channels)


class UNetEncoder(nnx.Module):
    """First convolution, encoder and middle of `models.unet.UNet`, then a pool."""

    def __init__(self, config: UNetEncoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        widths, embedding = config.widths, 4 * config.channels
        exact = {"init": config.init, "dtype": "float32"}
        self.time1 = Linear(config.channels, embedding, **exact)
        self.time2 = Linear(embedding, embedding, **exact)
        inputs = config.in_channels * config.patch_size**2
        self.conv_in = Conv(inputs, widths[0], init=config.init, dtype=config.dtype)
        width, encoder = widths[0], []
        for level, outputs in enumerate(widths):
            attention = config.resolutions[level] in config.attention_resolutions
            blocks = []
            for _ in range(config.num_res_blocks):
                blocks.append(Block(config, width, outputs, attention=attention, level=level))
                width = outputs
            last = level == len(widths) - 1
            encoder.append(Level(blocks, None if last else resampling(config, width, "down")))
        self.encoder = nnx.List(encoder)
        self.middle = nnx.List(
            [
                Block(config, width, width, attention=attention, level=level)
                for attention in (config.middle_attention, False)
            ]
        )
        self.norm_out = GroupNorm(width, config.norm_groups, config.norm_eps)
        if config.pool == "attention":
            self.pool = AttentionPool(config, width, config.resolutions[-1])
        else:
            self.pool = Linear(width, config.out_channels, zero=True, **exact)

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        time: Num[Array, " batch"],
        condition: None = None,
        *,
        rngs: nnx.Rngs | None = None,
        features: bool = False,
    ) -> (
        Float[Array, "batch outputs"]
        | tuple[Float[Array, "batch outputs"], Float[Array, "batch width"]]
    ):
        """Logits, float32. time and rngs: as of `models.unet.UNet`.

        features: (logits, what the last layer is given of the image) instead.
        """
        config = self.config
        embedding = sinusoidal(time, config.channels, config.time_embedding)
        embedding = self.time2(jax.nn.silu(self.time1(embedding)))
        embedding = jax.nn.silu(embedding).astype(config.dtype)

        def run(block, h):
            key = None if rngs is None or config.dropout == 0 else rngs.dropout()
            function = jax.checkpoint(block.__call__) if config.remat else block
            return function(h, embedding, key)

        h = self.conv_in(space_to_depth(x, config.patch_size).astype(config.dtype))
        for level in self.encoder:
            for block in [*level.blocks, *([level.resample] if level.resample else [])]:
                h = run(block, h)
        for block in self.middle:
            h = run(block, h)
        h = jax.nn.silu(self.norm_out(h.astype(jnp.float32)))
        if config.pool == "attention":
            vector, last = self.pool.pooled(h), self.pool.projection
        else:
            vector, last = h.mean((1, 2)), self.pool
        return (last(vector), vector) if features else last(vector)


def make_unet_encoder(config: UNetEncoderConfig) -> Network:
    """The encoder of `config` as pure functions."""
    return functional(lambda rngs: UNetEncoder(config, rngs=rngs))
