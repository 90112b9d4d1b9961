"""DINOv2's vision transformer, the network of FD-DINOv2 (Oquab et al., 2023)."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from models.functional import Network, functional, normal, scan, stack
from models.layers import space_to_depth
from models.settings import Settings
from models.transformer import Block, LayerNorm, Table, linear

_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class DINOv2Config(Settings):
    """What a tower is; the defaults are those of ViT-L/14 at 224 pixels.

    image_size: pixels a side of what it is given.
    patch_size: pixels a side of a token.
    width, depth, heads: of the transformer.
    mlp_ratio: width of the MLPs over `width`.

    Fields that cannot go together raise ValueError.
    """

    image_size: int = 224
    patch_size: int = 14
    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp_ratio: float = 4.0
    attention: str = "xla"
    dtype: str = "float32"
    num_classes: ClassVar[int] = 0
    null_class: ClassVar[bool] = False

    def __post_init__(self):
        self._check_common()
        self._positive("image_size", "patch_size", "width", "depth", "heads", "mlp_ratio")
        self._require("heads", self.width % self.heads == 0, f"must divide width={self.width}")
        whole = self.image_size % self.patch_size == 0
        self._require("patch_size", whole, f"must divide image_size={self.image_size}")

    @property
    def side(self) -> int:
        """Patches a side."""
        return self.image_size // self.patch_size


class DINOv2(nnx.Module):
    """The tower without registers; its class token is the image."""

    def __init__(self, config: DINOv2Config):
        self.config = config
        width, area = config.width, 3 * config.patch_size**2
        self.patches = linear(area, width, area**-0.5, config.dtype)
        self.class_token = normal((width,), 1e-6)
        self.positions = Table(config.side**2 + 1, width, 0.02)
        self.blocks = stack(lambda: self._block(config), config.depth)
        self.norm = LayerNorm(width, _EPS)

    @staticmethod
    def _block(config: DINOv2Config) -> Block:
        return Block(
            config.width,
            heads=config.heads,
            inner=round(config.width * config.mlp_ratio),
            depth=config.depth,
            causal=False,
            activation="gelu",
            implementation=config.attention,
            dtype=config.dtype,
            eps=_EPS,
            layer_scale=True,
        )

    def __call__(
        self, image: Float[Array, "batch side side 3"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch width"]:
        """The class token after the last norm. image: RGB, normalized by ImageNet's statistics.

        rngs: not used.
        """
        width = self.config.width
        x = self.patches(space_to_depth(image, self.config.patch_size))
        first = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (len(image), 1, width))
        x = jnp.concatenate([first, x.reshape(len(image), -1, width)], axis=1)
        x = scan(self.blocks, x + self.positions.embedding[...].astype(x.dtype))
        return self.norm(x[:, 0].astype(jnp.float32))


def make_dinov2(config: DINOv2Config) -> Network:
    """The tower of `config` as pure functions."""
    return functional(lambda rngs: DINOv2(config))
