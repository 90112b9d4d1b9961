"""Numbers that a network is told beside time: the length of a step, a guidance scale."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Shaped

from models.embeddings import sinusoidal
from models.layers import Linear


class Scalar(nnx.Module):
    """Sinusoids of a number, then two layers, the last of which starts at zero.

    So a network that is told one more number begins as the network that was not.
    """

    def __init__(self, channels: int, width: int):
        exact = {"init": "ddpm", "dtype": "float32"}
        self.channels = channels
        self.linear1 = Linear(channels, width, **exact)
        self.linear2 = Linear(width, width, zero=True, **exact)

    def __call__(self, value: Float[Array, " batch"]) -> Float[Array, "batch width"]:
        """float32, as the embedding of time."""
        waves = sinusoidal(value, self.channels, "adm")
        return self.linear2(jax.nn.silu(self.linear1(waves)))


class Scalars(nnx.Module):
    """The sum of the embeddings of all numbers of a condition that are among `names`."""

    def __init__(self, names: tuple[str, ...], channels: int, width: int):
        self.embeddings = nnx.Dict({name: Scalar(channels, width) for name in names})

    def __call__(
        self, condition: dict[str, Shaped[Array, "batch *rest"]]
    ) -> Float[Array, "batch width"]:
        """Each number is float [batch]."""
        parts = [embed(condition[name]) for name, embed in self.embeddings.items()]
        return jnp.sum(jnp.stack(parts), axis=0)
