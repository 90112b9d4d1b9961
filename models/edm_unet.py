"""Encoder, middle and decoder that DDPM++, NCSN++ and EDM's ADM share (Karras et al., 2022)."""

import abc

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num, Shaped

from models.convolution import Conv
from models.edm_blocks import Block, EDMUNetConfig, Pyramid, last, norm
from models.layers import Linear

Condition = dict[str, Shaped[Array, "batch ..."]] | None


class Projection(nnx.Module):
    """Dense layer without a bias, float32."""

    def __init__(self, kernel: nnx.Param):
        self.kernel = kernel

    def __call__(self, x: Float[Array, "batch inputs"]) -> Float[Array, "batch outputs"]:
        """x times the kernel."""
        return x @ self.kernel[...]


class Level(nnx.Module):
    """The way from the resolution before, the pyramid's step with it, and the blocks of this one.

    The coarsest level of the decoder comes from nowhere, as does the finest of the encoder.
    """

    def __init__(self, resample: Block | None, pyramid: Pyramid | None, blocks: list[Block]):
        self.resample, self.pyramid, self.blocks = resample, pyramid, nnx.List(blocks)


class EDMUNet(nnx.Module):
    """All of a U-Net but the embedding, which a subclass gives as `embed`.

    A subclass has `augment`, a Projection to the sinusoids of time or None.

    In the encoder the first convolution, every resampling and every block leave a skip, which
    the decoder's blocks take in turn, last first, beside their input.
    """

    def __init__(self, config: EDMUNetConfig, time_channels: int):
        self.config = config
        # Time and output stay float32: few operations, and what is lost there is lost for all.
        exact = {"init": config.init, "dtype": "float32"}
        self.time1 = Linear(time_channels, 4 * config.channels, **exact)
        self.time2 = Linear(4 * config.channels, 4 * config.channels, **exact)
        self.conv_in = Conv(config.in_channels, config.stem, init=config.init, dtype=config.dtype)

        width, pyramid_width = config.stem, config.in_channels
        skips, encoder, decoder = [width], [], []
        for number, outputs in enumerate(config.widths):
            resample = pyramid = None
            if number:
                resample = Block(config, width, width, resample="down")
                skips.append(width)
                if config.encoder == "residual":
                    pyramid = Pyramid(config, pyramid_width, width)
                    pyramid_width = width
            attention = config.resolutions[number] in config.attention_resolutions
            blocks = []
            for _ in range(config.num_res_blocks):
                blocks.append(Block(config, width, outputs, attention=attention))
                width = outputs
                skips.append(width)
            encoder.append(Level(resample, pyramid, blocks))
        self.encoder = nnx.List(encoder)

        self.middle = nnx.List(
            [Block(config, width, width, attention=where) for where in (True, False)]
        )

        coarsest = len(config.widths) - 1
        for number, outputs in reversed(list(enumerate(config.widths))):
            up = Block(config, width, width, resample="up") if number < coarsest else None
            attention = config.resolutions[number] in config.attention_resolutions
            blocks = []
            for index in range(config.num_res_blocks + 1):
                here = attention and (config.attend_often or index == config.num_res_blocks)
                blocks.append(Block(config, width + skips.pop(), outputs, attention=here))
                width = outputs
            decoder.append(Level(up, None, blocks))
        self.decoder = nnx.List(decoder)

        self.norm_out = norm(config, width)
        self.conv_out = last(Conv(width, config.out_channels, zero=True, **exact), config)

    @abc.abstractmethod
    def embed(
        self, time: Num[Array, " batch"], condition: Condition
    ) -> Float[Array, "batch embedding"]:
        """What the blocks are told of time and condition, after its activation; float32."""

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        time: Num[Array, " batch"],
        condition: Condition = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch height width channels_out"]:
        """Raw output, float32; what it means is the parameterization's business.

        time: any real number (EDM's c_noise).
        condition: 'label', int [batch], if the config has classes, where with null_class the label
            num_classes means "no label"; a label beyond that gives NaN. 'augment', float
            [batch, augment_dim], if the config has it: how each image was augmented. Zeros, and
            no 'augment' at all, mean that it was not.
        rngs: with a 'dropout' stream in training; None turns dropout off.

        Raises:
            ValueError: the condition is not what the config says.
        """
        config = self.config
        self._check(condition)
        embedding = self.embed(time, condition).astype(config.dtype)

        def run(block, h):
            key = None if rngs is None or config.dropout == 0 else rngs.dropout()
            function = jax.checkpoint(block.__call__) if config.remat else block
            return function(h, embedding, key)

        pyramid = x = x.astype(config.dtype)
        h = self.conv_in(x)
        skips = [h]
        for level in self.encoder:
            if level.resample is not None:
                h = run(level.resample, h)
                if level.pyramid is not None:
                    pyramid = h = (h + level.pyramid(pyramid)) * config.skip_scale
                skips.append(h)
            for block in level.blocks:
                h = run(block, h)
                skips.append(h)
        for block in self.middle:
            h = run(block, h)
        for level in self.decoder:
            if level.resample is not None:
                h = run(level.resample, h)
            for block in level.blocks:
                h = run(block, jnp.concatenate([h, skips.pop()], axis=-1))
        return self.conv_out(jax.nn.silu(self.norm_out(h.astype(jnp.float32))))

    def add_augment(
        self, embedding: Float[Array, "batch channels"], condition: Condition
    ) -> Float[Array, "batch channels"]:
        """The sinusoids of time with what `condition` says of augmentation."""
        if self.augment is None or "augment" not in (condition or {}):
            return embedding
        return embedding + self.augment(condition["augment"])

    def _check(self, condition: Condition) -> None:
        config, given = self.config, set(condition or ())
        needed = {"label"} if config.num_classes else set()
        allowed = needed | ({"augment"} if config.augment_dim else set())
        if not needed <= given <= allowed:
            raise ValueError(
                f"condition has {sorted(given)}, but a network with num_classes="
                f"{config.num_classes} and augment_dim={config.augment_dim} takes "
                f"{sorted(allowed) or None}"
            )
        augment = (condition or {}).get("augment")
        if augment is not None and augment.shape[1:] != (config.augment_dim,):
            raise ValueError(
                f"condition['augment'] is {augment.shape}, but augment_dim={config.augment_dim} "
                f"takes [batch, {config.augment_dim}]"
            )


def look_up(
    table: Float[Array, "classes channels"], label: Num[Array, " batch"], null_class: bool
) -> Float[Array, "batch channels"]:
    """Row of each label; with `null_class` the label behind the last is zeros. Beyond: NaN."""
    if null_class:
        table = jnp.concatenate([table, jnp.zeros_like(table[:1])])
    return jnp.take(table, label, axis=0, mode="fill", fill_value=jnp.nan)
