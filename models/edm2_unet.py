"""The magnitude-preserving U-Net of EDM2 (Karras et al., 2024, config G, figure 21)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

from models.functional import Network, functional
from models.layers import downsample, dropout, upsample
from models.magnitude_preserving import (
    MPConv,
    MPEmbedding,
    MPFourier,
    mp_cat,
    mp_silu,
    mp_sum,
    normalized,
    normalized_kernels,
)
from models.settings import Settings

Image = Float[Array, "batch height width channels"]


@dataclasses.dataclass(frozen=True)
class EDM2UNetConfig(Settings):
    """What an EDM2 U-Net is.

    The fields from `channels` on are those of `edm2_unet` in configs/networks.py. Fields that
    cannot go together raise ValueError.
    """

    in_channels: int
    out_channels: int
    image_size: int
    channels: int = 192
    channel_mult: tuple[int | float, ...] = (1, 2, 3, 4)
    num_res_blocks: int = 3
    attention_resolutions: tuple[int, ...] = (16, 8)
    head_channels: int = 64
    label_balance: float = 0.5
    concat_balance: float = 0.5
    res_balance: float = 0.3
    attn_balance: float = 0.3
    clip_act: float = 256.0
    dropout: float = 0.0
    num_classes: int = 1000
    null_class: bool = False
    attention: str = "xla"
    remat: bool = False
    dtype: str = "float32"

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.channels * mult for mult in self.channel_mult)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Side of the feature map of each level in pixels, finest first."""
        return tuple(self.image_size >> level for level in range(len(self.channel_mult)))

    def __post_init__(self):
        self._check_common()
        self._positive("in_channels", "out_channels", "image_size", "channels", "num_res_blocks")
        self._positive("head_channels", "clip_act")
        self._require("dropout", 0 <= self.dropout < 1, "must be in [0, 1)")
        for name in ("label_balance", "concat_balance", "res_balance", "attn_balance"):
            self._require(name, 0 <= getattr(self, name) <= 1, "must be in [0, 1]")
        mult = self.channel_mult
        whole = len(mult) > 0 and all(isinstance(m, int) and m > 0 for m in mult)
        self._require("channel_mult", whole, "needs a positive whole number for each level")

        levels, sizes, widths = len(mult), self.resolutions, self.widths
        whole = self.image_size % 2 ** (levels - 1) == 0
        message = f"must be a multiple of {2 ** (levels - 1)}: channel_mult has {levels} levels"
        self._require("image_size", whole, message)
        known = set(self.attention_resolutions) <= set(sizes)
        self._require("attention_resolutions", known, f"the levels have {sizes}")
        attended = {
            w for w, s in zip(widths, sizes, strict=True) if s in self.attention_resolutions
        }
        attended = sorted(attended | {widths[-1]})
        split = all(width % self.head_channels == 0 for width in attended)
        message = f"must divide the channels of levels with attention and of the last, {attended}"
        self._require("head_channels", split, message)


class SelfAttention(nnx.Module):
    """Cosine attention: queries, keys and values have magnitude 1 (section B.7); no residual.

    The output axis of `qkv` is (q | k | v, head, channel of head).
    """

    def __init__(self, config: EDM2UNetConfig, channels: int):
        self.config = config
        self.qkv = MPConv(channels, 3 * channels, dtype=config.dtype)
        self.projection = MPConv(channels, channels, dtype=config.dtype)

    def __call__(self, x: Image) -> Image:
        """Every position attends to every position of the same image; softmax in float32."""
        batch, height, width, channels = x.shape
        size = self.config.head_channels
        qkv = self.qkv(x).reshape(batch, height * width, 3, channels // size, size)
        qkv = normalized(qkv, -1)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        out = jax.nn.dot_product_attention(q, k, v, implementation=self.config.attention)
        return self.projection(out.reshape(x.shape))


class Block(nnx.Module):
    """Residual block, then by config attention; clipped at the end.

    decoder: False is the encoder's kind, where the convolution of the shortcut and a pixel norm
        come before the branches part; the decoder's has the convolution on the shortcut alone and
        no norm.
    resample: 'down' (mean of 2 x 2) or 'up' (nearest) comes first of all; None keeps the size.
    takes_skip: whether the network puts a skip beside the input; the block itself does not care.
    """

    def __init__(
        self,
        config: EDM2UNetConfig,
        inputs: int,
        outputs: int,
        *,
        decoder: bool,
        attention: bool = False,
        resample: str | None = None,
        takes_skip: bool = False,
    ):
        self.config, self.decoder, self.takes_skip = config, decoder, takes_skip
        self.resample = {"down": downsample, "up": upsample, None: lambda x: x}[resample]
        window, dtype = (3, 3), config.dtype
        self.conv1 = MPConv(inputs if decoder else outputs, outputs, window=window, dtype=dtype)
        self.conv2 = MPConv(outputs, outputs, window=window, dtype=dtype)
        # How much of the embedding enters; nothing at initialization.
        self.condition = MPConv(max(config.widths), outputs, dtype="float32")
        self.gain = nnx.Param(jnp.zeros(()))
        self.shortcut = MPConv(inputs, outputs, dtype=dtype) if inputs != outputs else None
        self.attention = SelfAttention(config, outputs) if attention else None

    def __call__(
        self, x: Image, embedding: Float[Array, "batch embedding"], key: PRNGKeyArray | None
    ) -> Float[Array, "batch height_out width_out channels_out"]:
        """key: of dropout; None turns it off."""
        config = self.config
        x = self.resample(x)
        shortcut = x if self.shortcut is None else self.shortcut(x)
        if not self.decoder:
            x = shortcut = normalized(shortcut, -1)

        y = self.conv1(mp_silu(x))
        scale = 1 + self.condition(embedding, self.gain[...])
        y = mp_silu(y * scale[:, None, None].astype(y.dtype))
        y = self.conv2(dropout(y, config.dropout, key))

        x = mp_sum(shortcut, y, config.res_balance)
        if self.attention is not None:
            x = mp_sum(x, self.attention(x), config.attn_balance)
        return jnp.clip(x, -config.clip_act, config.clip_act)


class EDM2UNet(nnx.Module):
    """Encoder and decoder over image x, told of the noise level and (by config) of a label.

    In the encoder the first convolution and every block leave a skip, which the decoder's blocks
    (but those that change the resolution, and the first two) take in turn, last first.
    """

    def __init__(self, config: EDM2UNetConfig):
        self.config = config
        widths, attended = config.widths, config.attention_resolutions
        # Embedding, input and output stay float32: few operations, and what is lost is lost for
        # all. In bfloat16 the rounding of x is half as large as the noise at EDM's sigma_min.
        self.fourier = MPFourier(widths[0])
        self.time = MPConv(widths[0], max(widths), dtype="float32")
        classes, null = config.num_classes, config.null_class
        self.label = MPEmbedding(classes, max(widths), null=null) if classes else None
        inputs = config.in_channels + 1
        self.conv_in = MPConv(inputs, widths[0], window=(3, 3), dtype="float32")

        width, skips = widths[0], [widths[0]]
        encoder, decoder = [], []

        def add(blocks, inputs, outputs, **settings):
            blocks.append(Block(config, inputs, outputs, decoder=blocks is decoder, **settings))
            return outputs

        for level, outputs in enumerate(widths):
            attention = config.resolutions[level] in attended
            if level:
                skips.append(add(encoder, width, width, resample="down"))
            for _ in range(config.num_res_blocks):
                width = add(encoder, width, outputs, attention=attention)
                skips.append(width)
        for level, outputs in reversed(list(enumerate(widths))):
            attention = config.resolutions[level] in attended
            if level == len(widths) - 1:
                add(decoder, width, width, attention=True)
                add(decoder, width, width)
            else:
                add(decoder, width, width, resample="up")
            for _ in range(config.num_res_blocks + 1):
                inputs = width + skips.pop()
                width = add(decoder, inputs, outputs, attention=attention, takes_skip=True)
        self.encoder, self.decoder = nnx.List(encoder), nnx.List(decoder)
        self.conv_out = MPConv(width, config.out_channels, window=(3, 3), dtype="float32")
        self.gain_out = nnx.Param(jnp.zeros(()))

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        time: Num[Array, " batch"],
        condition: dict[str, Int[Array, " batch"]] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch height width channels_out"]:
        """Raw output, float32: F of EDM, where x is c_in x (variance 1) and time c_noise.

        condition: {'label': int [batch]} if the config has classes, where with null_class the
            label num_classes means "no label"; otherwise None. A label beyond that gives NaN.
        rngs: with a 'dropout' stream in training; None turns dropout off.
        """
        config = self.config
        embedding = self._embed(time, config.label(condition))

        def run(block, h):
            key = None if rngs is None or config.dropout == 0 else rngs.dropout()
            function = jax.checkpoint(block.__call__) if config.remat else block
            return function(h, embedding, key)

        # A channel of ones stands for the biases that the layers lack.
        h = self.conv_in(jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1))
        h = h.astype(config.dtype)
        skips = [h]
        for block in self.encoder:
            h = run(block, h)
            skips.append(h)
        for block in self.decoder:
            if block.takes_skip:
                h = mp_cat(h, skips.pop(), config.concat_balance)
            h = run(block, h)
        return self.conv_out(h, self.gain_out[...])

    def _embed(self, time, label) -> Float[Array, "batch embedding"]:
        embedding = self.time(self.fourier(time))
        if label is not None:
            embedding = mp_sum(embedding, self.label(label), self.config.label_balance)
        return mp_silu(embedding)


def make_edm2_unet(config: EDM2UNetConfig) -> Network:
    """The U-Net of `config` as pure functions; initial kernels are normalized."""
    network = functional(lambda rngs: EDM2UNet(config))
    return Network(lambda key: normalized_kernels(network.init(key)), network.apply)
