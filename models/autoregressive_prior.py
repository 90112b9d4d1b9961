"""The autoregressive prior of unCLIP: a caption to the codes of a quantized image embedding.

Ramesh et al. 2022, section 2.2; what the codes mean is `training.quantization`'s business.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from models.caption import NO_TEXT, Caption, CaptionSettings
from models.causal import Block, KeysValues, looks_back
from models.functional import Network, Params, functional, normal, scan, stack
from models.transformer import LayerNorm, Tokens, linear

# Entry of the condition: the code of the dot product of image and text embedding, int [batch].
DOT = "dot"


@dataclasses.dataclass(frozen=True)
class AutoregressivePriorConfig(CaptionSettings):
    """What it is; the fields are those of `autoregressive_prior` in configs/networks.py.

    Fields that cannot go together raise ValueError.
    """

    components: int = 319
    buckets: int = 1024

    @property
    def prefix(self) -> int:
        """Tokens before the first code: the text's, its embedding, the dot product."""
        return self.context_length + 2

    @property
    def length(self) -> int:
        """Tokens of a whole sequence; nothing follows the last code, which is no input."""
        return self.prefix + self.components - 1

    def __post_init__(self):
        super().__post_init__()
        self._positive("components")
        few = self.components <= self.embedding_dim
        self._require("components", few, f"must be at most embedding_dim={self.embedding_dim}")
        self._require("buckets", self.buckets > 1, "must be at least 2")


class Cache(NamedTuple):
    """What earlier tokens left: keys and values of all blocks, and which places may be seen."""

    blocks: KeysValues
    seen: Bool[Array, "batch length"]


class AutoregressivePrior(nnx.Module):
    """A causal transformer over [text tokens, text embedding, dot product, codes].

    A withheld caption withholds its dot product, too.
    """

    def __init__(self, config: AutoregressivePriorConfig):
        self.config = config
        width = config.width
        self.caption = Caption(config)
        self.dots = normal((config.buckets + config.null_text, width), 0.02)
        self.codes = normal((config.buckets, width), 0.02)
        self.positions = normal((config.length, width), 0.01)
        block = lambda: Block(width, config.num_heads, config.depth, config.dtype)  # noqa: E731
        self.blocks = stack(block, config.depth)
        self.norm = LayerNorm(width)
        self.out = linear(width, config.buckets, width**-0.5, "float32")

    def __call__(
        self,
        codes: Int[Array, "batch given"],
        condition: dict[str, PyTree] | None,
        *,
        keep: bool = False,
        cache: Cache | None = None,
        place: Int[Array, ""] | int = 0,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "batch logits buckets"] | tuple[Float[Array, "batch logits buckets"], Cache]:
        """Logits of the first code and of the one after each given code, float32.

        condition: as of `models.prior.Prior`, and 'dot' [batch], the dot product's code.
        keep: the cache is given, too.
        cache: the caption and the codes before `place` are those of the cache, and condition is
            None: logits of the codes after each given one, and the new cache.
        rngs: not used; there is no dropout.
        """
        if cache is not None:
            tokens = self.codes[...][codes]
            return self._cached(tokens, self.config.prefix + place, cache)
        tokens, seen = self._prefix(condition)
        tokens = jnp.concatenate([tokens, self.codes[...][codes]], axis=1)
        seen = jnp.pad(
            seen, ((0, 0), (0, self.config.length - seen.shape[1])), constant_values=True
        )
        if keep:
            logits, cache = self._cached(tokens, 0, self._empty(seen))
            return logits[:, self.config.prefix - 1 :], cache
        length = tokens.shape[1]
        tokens = (tokens + self.positions[:length]).astype(self.config.dtype)
        mask = looks_back(seen[:, :length], length)
        tokens = scan(self.blocks, tokens, mask, remat=self.config.remat)
        return self.out(self.norm(tokens[:, self.config.prefix - 1 :]))

    def _prefix(self, condition) -> tuple[Tokens, Bool[Array, "batch tokens"]]:
        self.config.check_condition(condition, (DOT,))
        tokens, seen = self.caption(condition)
        dot = condition[DOT]
        if self.config.null_text:
            dot = jnp.where(condition[NO_TEXT], self.config.buckets, dot)
        tokens = jnp.concatenate([tokens.astype(jnp.float32), self.dots[...][dot][:, None]], axis=1)
        return tokens, jnp.pad(seen, ((0, 0), (0, 1)), constant_values=True)

    def _empty(self, seen: Bool[Array, "batch length"]) -> Cache:
        config = self.config
        shape = (len(seen), config.length, config.num_heads, config.width // config.num_heads)
        zeros = jnp.zeros((config.depth, *shape), config.dtype)
        return Cache(KeysValues(zeros, zeros), seen)

    def _cached(self, tokens: Tokens, start: Int[Array, ""] | int, cache: Cache):
        positions = jax.lax.dynamic_slice_in_dim(self.positions[...], start, tokens.shape[1])
        mask = looks_back(cache.seen, tokens.shape[1], start)
        tokens = (tokens + positions).astype(self.config.dtype)
        tokens, blocks = scan(self.blocks, tokens, mask, start, each=cache.blocks, emit=True)
        return self.out(self.norm(tokens)), cache._replace(blocks=blocks)


def make_autoregressive_prior(config: AutoregressivePriorConfig) -> Network:
    """The prior of `config` as pure functions."""
    return functional(lambda rngs: AutoregressivePrior(config))


def sample_codes(
    network: Network,
    params: Params,
    condition: dict[str, PyTree],
    keys: Key[Array, " batch"],
    components: int,
    *,
    temperature: float = 1.0,
    scale: float = 1.0,
) -> Int[Array, "batch {components}"]:
    """Codes drawn one after the other, in one scan with a cache.

    Row i depends on its own condition and keys[i] alone: code k is drawn with fold_in(keys[i], k).

    temperature: logits are divided by it, after the guidance.
    scale: of classifier-free guidance, logits null + scale (conditional - null); 1 is unguided.
    """
    guided = scale != 1.0
    asked = _with_null(condition) if guided else condition

    def draw(logits: Float[Array, "rows buckets"], k: Int[Array, ""]) -> Int[Array, " batch"]:
        if guided:
            told, null = jnp.split(logits, 2)
            logits = null + scale * (told - null)
        drawn = jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, k), row))
        return drawn(keys, logits / temperature).astype(jnp.int32)

    def step(carry, k: Int[Array, ""]):
        cache, logits = carry
        code = draw(logits, k)
        given = jnp.concatenate([code, code]) if guided else code
        after, cache = network.apply(params, given[:, None], None, cache=cache, place=k)
        return (cache, after[:, 0]), code

    none = jnp.zeros((len(jax.tree.leaves(asked)[0]), 0), jnp.int32)
    logits, cache = network.apply(params, none, asked, keep=True)
    # The last code is drawn and not looked at any more.
    last = components - 1
    (_, logits), codes = jax.lax.scan(step, (cache, logits[:, 0]), jnp.arange(last))
    return jnp.concatenate([codes.T, draw(logits, jnp.int32(last))[:, None]], axis=1)


def _with_null(condition: dict[str, PyTree]) -> dict[str, PyTree]:
    """The rows as they are, then all of them without their captions."""
    if NO_TEXT not in condition:
        raise ValueError("scale: guidance needs a network with null_text=True; take scale=1.0")
    null = condition | {NO_TEXT: jnp.ones_like(condition[NO_TEXT])}
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), condition, null)
