"""Product of activations and a kernel whose gradient is not slow on a CPU.

XLA writes the gradient of the kernel as a product with a transposed copy of one factor, for which
it computes anew, column by column, what made that factor. Contracted as they lie, without a copy,
the step of a small transformer takes three quarters of the time (docs/speed.md).
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from models.bilinear import bilinear, trilinear


def matmul(
    x: Float[Array, "*axes inputs"], kernel: Float[Array, "inputs outputs"]
) -> Float[Array, "*axes outputs"]:
    """x @ kernel, both of one type."""
    return _value_p.bind(x, kernel)


def _transposed(g, kernel):
    return lax.dot_general(g, kernel, (((g.ndim - 1,), (1,)), ((), ())))


def _kernel(x, g):
    rows = tuple(range(x.ndim - 1))
    return lax.dot_general(x, g, ((rows, rows), ((), ())))


def _cpu_kernel(x, g):
    return _kernel(x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1]))


_value_p = bilinear(
    "matmul", jnp.matmul, lambda x, k: (*x[:-1], k[1]), cpu=jnp.matmul, cpus=jnp.matmul
)
_transposed_p = bilinear(
    "matmul_transposed",
    _transposed,
    lambda g, k: (*g[:-1], k[0]),
    cpu=_transposed,
    cpus=_transposed,
)
_kernel_p = bilinear(
    "matmul_kernel", _kernel, lambda x, g: (x[-1], g[-1]), cpu=_cpu_kernel, cpus=_kernel
)
trilinear(_value_p, _transposed_p, _kernel_p)
