import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from models.matmul import matmul
from training.flops import count_flops


def case(*axes):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (*axes, 3))
    kernel = jax.random.normal(keys[1], (3, 4))
    weight = jax.random.normal(keys[2], (*axes, 4))
    return x, kernel, lambda f: lambda x, kernel: (jnp.sin(f(x, kernel)) * weight).sum()


def agree(transform, *axes):
    x, kernel, loss = case(*axes)
    got, want = jax.jit(lambda *a: [transform(loss(f))(*a) for f in (matmul, jnp.matmul)])(
        x, kernel
    )
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)  # noqa: E731
    jax.tree.map(close, got, want)


@pytest.mark.parametrize("axes", [(), (5,), (2, 5), (2, 3, 5)])
def test_value_and_gradient(axes):
    agree(lambda f: jax.value_and_grad(f, (0, 1)), *axes)


def test_forward_mode():
    agree(lambda f: lambda x, kernel: jax.jvp(f, (x, kernel), (x, kernel)), 2, 5)


def test_forward_over_reverse():
    gradient = lambda f: jax.grad(f, (0, 1))  # noqa: E731
    agree(lambda f: lambda *xs: jax.jvp(gradient(f), xs, xs)[1], 2, 5)


def test_reverse_over_reverse():
    def transform(f):
        def size(x, kernel):
            return sum(jnp.square(g).sum() for g in jax.grad(f, (0, 1))(x, kernel))

        return jax.grad(size, (0, 1))

    agree(transform, 2, 5)


def test_gradient_of_each_example():
    def transform(f):
        each = jax.vmap(jax.grad(f, 1), (0, None))
        return lambda x, kernel: each(x[:, None], kernel)

    agree(transform, 1, 5)


def test_gradient_through_vmap_over_kernels():
    def transform(f):
        return jax.grad(lambda x, k: jax.vmap(f, (None, 0))(x, jnp.stack([k, 2 * k])).sum(), (0, 1))

    agree(transform, 2, 5)


def test_keeps_the_type():
    x, kernel, loss = case(2, 5)
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    assert matmul(x, kernel).dtype == jnp.bfloat16
    assert {g.dtype for g in jax.grad(loss(matmul), (0, 1))(x, kernel)} == {jnp.bfloat16.dtype}


def test_rows_over_devices():
    x, kernel, _ = case(4, 5)
    gradient = jax.jit(jax.grad(lambda x, k: jnp.sin(matmul(x, k)).sum(), (0, 1)))
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:4]), ("data",)), PartitionSpec("data"))
    got, want = gradient(jax.device_put(x, sharding), kernel), gradient(x, kernel)
    assert got[0].sharding.is_equivalent_to(sharding, 3)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_cpu_transposes_nothing_for_the_gradient_of_the_kernel():
    """XLA alone makes a transposed copy of the activations or of their gradient."""
    x, g = jnp.ones((8, 16, 32)), jnp.ones((8, 16, 64))

    def gradient(f):
        loss = lambda x, k, g: (f(x, k) * g).sum()  # noqa: E731
        program = jax.jit(jax.grad(loss, 1)).lower(x, jnp.ones((32, 64)), g).compile().as_text()
        return "[64,128]" in program or "[32,128]" in program

    assert not gradient(matmul)
    assert gradient(jnp.matmul)


def test_flops_are_those_of_the_product():
    x, kernel, loss = case(2, 5)
    assert count_flops(jax.grad(loss(matmul), (0, 1)), x, kernel) == 3 * 2 * 2 * 5 * 3 * 4
