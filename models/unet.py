"""The U-Net: DDPM, iDDPM, ADM, GLIDE, latent diffusion, VDM are settings of one."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num, PyTree, Shaped

from models.attention import Context
from models.blocks import Block, Level, resampling
from models.convolution import Conv
from models.embeddings import sinusoidal
from models.functional import Network, functional
from models.layers import GroupNorm, Linear, depth_to_space, space_to_depth
from models.scalars import Scalars
from models.unet_config import UNetConfig


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
        vector = config.embedding_dim
        self.embedding = Linear(vector, embedding, **exact) if vector else None
        names = config.scalars
        self.scalars = Scalars(names, config.channels, embedding) if names else None
        area = config.patch_size**2
        inputs = config.in_channels * (1 + 2 * len(config.fourier_features)) * area
        self.conv_in = Conv(inputs, widths[0], init=config.init, dtype=config.dtype)

        width, skips = widths[0], [widths[0]]
        encoder, decoder = [], []
        for level, outputs in enumerate(widths):
            attention = config.resolutions[level] in config.attention_resolutions
            blocks = []
            for _ in range(config.num_res_blocks):
                blocks.append(Block(config, width, outputs, attention=attention, level=level))
                width = outputs
                skips.append(width)
            resample = None
            if level < len(widths) - 1:
                resample = resampling(config, width, "down")
                skips.append(width)
            encoder.append(Level(blocks, resample))
        self.encoder = nnx.List(encoder)

        self.middle = nnx.List(
            [
                Block(config, width, width, attention=attention, level=level)
                for attention in (config.middle_attention, False)
            ]
        )

        for level, outputs in reversed(list(enumerate(widths))):
            attention = config.resolutions[level] in config.attention_resolutions
            blocks = []
            for _ in range(config.num_res_blocks + 1):
                inputs = width + skips.pop()
                blocks.append(Block(config, inputs, outputs, attention=attention, level=level))
                width = outputs
            resample = resampling(config, width, "up") if level else None
            decoder.append(Level(blocks, resample))
        self.decoder = nnx.List(decoder)

        self.norm_out = GroupNorm(width, config.norm_groups, config.norm_eps)
        self.conv_out = Conv(width, config.out_channels * area, zero=True, **exact)

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        time: Num[Array, " batch"],
        condition: dict[str, PyTree[Shaped[Array, "batch ..."]]] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch height width channels_out"]:
        """Raw output, float32; what it means is the parameterization's business.

        time: any real number; the integer index of the step for a network that is trained so.
        condition: what the config asks for, all of it and nothing else; None if that is nothing:
            'label' int [batch], with classes. With null_class the label num_classes means "no
                label"; a label beyond that gives NaN.
            'embedding' float [batch embedding_dim], with embedding_dim: goes where time goes.
            each of the config's scalars, float [batch]: goes where time goes.
            'context' float [batch length context_dim], with context: tokens to attend to.
            'context_mask' bool [batch length], never required: False is a token not to be seen.
            'identity_attention' {resolution: bool [batch]}, never required: True replaces the
                self-attention there, for perturbed-attention guidance.
        rngs: with a 'dropout' stream in training; None turns dropout off.
        """
        config = self.config
        condition = self._checked(condition)
        embedding = self._embed(time, condition).astype(config.dtype)
        context = self._context(condition)
        identity = condition.get("identity_attention", {})

        def run(block, h, *more):
            key = None if rngs is None or config.dropout == 0 else rngs.dropout()
            function = jax.checkpoint(block.__call__) if config.remat else block
            return function(h, embedding, key, *more)

        patches = space_to_depth(self._features(x), config.patch_size)
        h = self.conv_in(patches.astype(config.dtype))
        skips = [h]
        for level, size in zip(self.encoder, config.resolutions, strict=True):
            for block in level.blocks:
                h = run(block, h, context, identity.get(size))
                skips.append(h)
            if level.resample is not None:
                h = run(level.resample, h)
                skips.append(h)
        for block in self.middle:
            h = run(block, h, context, identity.get(config.resolutions[-1]))
        for level, size in zip(self.decoder, reversed(config.resolutions), strict=True):
            for block in level.blocks:
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = run(block, h, context, identity.get(size))
            if level.resample is not None:
                h = run(level.resample, h)
        patches = self.conv_out(jax.nn.silu(self.norm_out(h.astype(jnp.float32))))
        return depth_to_space(patches, config.patch_size)

    def _checked(self, condition) -> dict[str, PyTree[Shaped[Array, "batch ..."]]]:
        """The condition as a dict, or ValueError if it is not what the config asks for."""
        config = self.config
        fields = {
            "label": self.label is not None,
            "embedding": config.embedding_dim,
            "context": config.context_dim,
        }
        fields |= dict.fromkeys(config.scalars, True)
        wanted = [name for name, there in fields.items() if there]
        mask = ("context_mask",) if config.context_dim else ()
        optional = {*mask, "identity_attention"}
        condition = dict(condition or {})
        if condition.keys() - optional != set(wanted):
            raise ValueError(
                f"condition has {sorted(condition)}, but a U-Net with context={config.context!r}, "
                f"embedding_dim={config.embedding_dim}, num_classes={config.num_classes} takes "
                f"{wanted or None}{', and context_mask if it is wanted' if mask else ''}"
            )
        if unknown := set(condition.get("identity_attention", {})) - set(config.attended):
            raise ValueError(
                f"condition['identity_attention'] has the resolutions {sorted(unknown)}, but this "
                f"U-Net has attention at {config.attended}"
            )
        for name in {"embedding", "context"} & condition.keys():
            if condition[name].shape[-1] != fields[name]:
                raise ValueError(
                    f"condition[{name!r}] has shape {condition[name].shape}, but {name}_dim="
                    f"{fields[name]}: the last axis must have that length"
                )
        return condition

    def _embed(self, time, condition) -> Float[Array, "batch embedding"]:
        embedding = sinusoidal(time, self.config.channels, self.config.time_embedding)
        embedding = self.time2(jax.nn.silu(self.time1(embedding)))
        if self.label is not None:
            embedding += self.label(condition["label"])
        if self.embedding is not None:
            embedding += self.embedding(condition["embedding"])
        if self.scalars is not None:
            embedding += self.scalars(condition)
        return jax.nn.silu(embedding)

    def _context(self, condition) -> Context | None:
        if "context" not in condition:
            return None
        tokens, mask = condition["context"].astype(self.config.dtype), condition.get("context_mask")
        if mask is not None:
            tokens = jnp.where(mask[..., None], tokens, 0)
        return Context(tokens, mask)

    def _features(self, x) -> Float[Array, "batch height width features"]:
        """x, sin(2^n pi x) and cos(2^n pi x) for each n of the config (Kingma et al., 2021)."""
        if not self.config.fourier_features:
            return x
        powers = np.exp2(np.array(self.config.fourier_features, np.float32))
        # float32: a sine of hundreds of turns has no digits left in bfloat16.
        angle = x.astype(jnp.float32)[..., None] * (powers * np.float32(np.pi))
        angle = angle.reshape(*x.shape[:-1], -1)
        return jnp.concatenate([x, jnp.sin(angle), jnp.cos(angle)], axis=-1)


def make_unet(config: UNetConfig) -> Network:
    """The U-Net of `config` as pure functions."""
    return functional(lambda rngs: UNet(config, rngs=rngs), config.attended)
