"""The diffusion prior of unCLIP: from a caption to a CLIP image embedding (Ramesh et al. 2022)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num, PyTree

from models.caption import Caption, CaptionSettings
from models.causal import Block, looks_back
from models.embeddings import sinusoidal
from models.functional import Network, functional, normal, scan, stack
from models.transformer import LayerNorm, linear


@dataclasses.dataclass(frozen=True)
class PriorConfig(CaptionSettings):
    """What a prior is; the fields are those of `prior` in configs/networks.py.

    Fields that cannot go together raise ValueError.
    """


class Prior(nnx.Module):
    """A causal transformer over [text tokens, text embedding, time, noisy image embedding, query].

    What stands at the query after the last block is the prediction (section 2.2). With
    null_text=False it is the network of Karlo and Kandinsky 2, `models.pretrained.prior`.
    """

    def __init__(self, config: PriorConfig):
        self.config = config
        width, dim = config.width, config.embedding_dim
        self.caption = Caption(config)
        # Time, the noisy embedding and the output stay float32.
        self.time1 = linear(width, width, width**-0.5, "float32")
        self.time2 = linear(width, width, width**-0.5, "float32")
        self.image = linear(dim, width, dim**-0.5, "float32")
        self.query = normal((width,), 0.02)
        self.positions = normal((config.context_length + 4, width), 0.01)
        block = lambda: Block(width, config.num_heads, config.depth, config.dtype)  # noqa: E731
        self.blocks = stack(block, config.depth)
        self.norm = LayerNorm(width)
        self.out = linear(width, dim, width**-0.5, "float32")

    def __call__(
        self,
        x: Float[Array, "batch dim"],
        time: Num[Array, " batch"],
        condition: dict[str, PyTree] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch dim"]:
        """Raw output, float32; what it means is the parameterization's business.

        condition: 'text_embedding' [batch, dim]; 'text_features' [batch, context_length, text_dim]
            with 'text_mask' [batch, context_length], True up to and with the end of the text, at
            least at the first token; with null_text also 'no_text' [batch], True where the
            caption is withheld.
        rngs: not used; a prior has no dropout.
        """
        config = self.config
        config.check_condition(condition)
        tokens, seen = self.caption(condition)
        waves = sinusoidal(time, config.width, "adm")
        told = self.time2(jax.nn.silu(self.time1(waves)))
        query = jnp.broadcast_to(self.query[...], told.shape)
        last = jnp.stack([told, self.image(x), query], axis=1)
        tokens = jnp.concatenate([tokens.astype(jnp.float32), last], axis=1) + self.positions[...]
        seen = jnp.pad(seen, ((0, 0), (0, 3)), constant_values=True)
        mask = looks_back(seen, tokens.shape[1])
        tokens = scan(self.blocks, tokens.astype(config.dtype), mask, remat=config.remat)
        return self.out(self.norm(tokens[:, -1]))


def make_prior(config: PriorConfig) -> Network:
    """The prior of `config` as pure functions."""
    return functional(lambda rngs: Prior(config))
