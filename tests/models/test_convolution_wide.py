"""Wide 3x3 convolutions, which one CPU device computes by Winograd's algorithm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.convolution import convolve, general

# 36 images are two parts of 18.
BATCH, SIZE, CHANNELS, OUT = 36, 8, 160, 128


def reference(x, kernel):
    return general(x, kernel)


@pytest.fixture(scope="module")
def case():
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (BATCH, SIZE, SIZE, CHANNELS))
    kernel = jax.random.normal(keys[1], (3, 3, CHANNELS, OUT))
    return x, kernel, jax.random.normal(keys[2], (BATCH, SIZE, SIZE, OUT))


def agree(transform, *arguments, tolerance=1e-5):
    got, want = (jax.jit(transform(f))(*arguments) for f in (convolve, reference))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


def test_is_winograd_on_one_cpu_device_alone(case):
    def program(x, kernel, g, **lowering):
        f = jax.jit(lambda x, kernel, g: jax.vjp(convolve, x, kernel)[1](g))
        return f.trace(x, kernel, g).lower(**lowering).as_text()

    assert "convolution" not in program(*case)
    assert program(*case, lowering_platforms=("cuda",)).count("stablehlo.convolution") == 2
    x, kernel, g = (jnp.zeros(a.shape, jnp.bfloat16) for a in case)
    assert program(x, kernel, g).count("stablehlo.convolution") == 1
    odd = case[0][:, :7], case[1], case[2][:, :7]
    assert program(*odd).count("stablehlo.convolution") == 1


def test_value(case):
    agree(lambda f: f, *case[:2])


def test_gradients(case):
    agree(lambda f: lambda x, kernel, g: jax.vjp(f, x, kernel)[1](g), *case)


def test_forward_mode_and_second_derivative(case):
    x, kernel, _ = case

    def transform(f):
        def size(x, kernel):
            return jnp.square(0.01 * f(x, kernel)).sum()

        def product(x, kernel):
            return jax.jvp(jax.grad(size, (0, 1)), (x, kernel), (kernel.mean() * x, 2 * kernel))

        return product

    agree(transform, x[:6], kernel)


def test_vmap(case):
    x, kernel, g = case
    groups = lambda a: a[:6].reshape(3, 2, *a.shape[1:])  # noqa: E731
    gradient = lambda f: jax.grad(lambda x, k, g: (f(x, k) * g).sum(), (0, 1))  # noqa: E731
    agree(lambda f: jax.vmap(gradient(f), (0, None, 0)), groups(x), kernel, groups(g))


@pytest.mark.parametrize("batch", [1, 7])
def test_an_image_does_not_depend_on_its_batch(case, batch):
    """Neither on its row, nor on the other images, nor here on how many there are."""
    x, kernel, _ = case
    f = jax.jit(convolve)
    y = np.asarray(f(x, kernel))
    np.testing.assert_array_equal(f(x[::-1], kernel), y[::-1])
    np.testing.assert_array_equal(f(x[:batch], kernel), y[:batch])


def test_batch_sharded_over_devices(case):
    x, kernel, g = (case[0][:32], case[1], case[2][:32])
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    f = jax.jit(lambda x, kernel, g: jax.vjp(convolve, x, kernel)[1](g))
    placed = jax.device_put(x, rows), jax.device_put(kernel, whole), jax.device_put(g, rows)
    got = f(*placed)
    assert got[0].sharding.is_equivalent_to(rows, 4)
    text = f.lower(*placed).compile().as_text()
    # The batch stays where it is; only the kernel's gradient is summed over devices.
    assert "all-gather" not in text
    assert "all-to-all" not in text
    for a, b in zip(got, f(x, kernel, g), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_gradient_of_the_kernel_in_bfloat16(case):
    half = [a.astype(jnp.bfloat16) for a in case]
    got = jax.vjp(convolve, *half[:2])[1](half[2])[1]
    exact = jax.vjp(reference, *(a.astype(jnp.float32) for a in half[:2]))[1](
        half[2].astype(jnp.float32)
    )[1]
    assert got.dtype == jnp.bfloat16
    # Sums are kept in float32, so what is left is the rounding of the result.
    np.testing.assert_allclose(
        got.astype(np.float32), exact, rtol=2**-8, atol=1e-5 * np.abs(exact).max()
    )
