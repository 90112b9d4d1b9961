import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from models.convolution import Conv, convolve
from models.functional import functional


def reference(x, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=layout, precision="highest"
    )


def case(height=5, width=6):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, height, width, 3))
    kernel = jax.random.normal(keys[1], (3, 3, 3, 4))
    weight = jax.random.normal(keys[2], (2, height, width, 4))
    return x, kernel, lambda f: lambda x, kernel: (jnp.sin(f(x, kernel)) * weight).sum()


def agree(transform, *, height=5, width=6, tolerance=1e-4):
    x, kernel, loss = case(height, width)
    got, want = jax.jit(lambda *a: [transform(loss(f))(*a) for f in (convolve, reference)])(
        x, kernel
    )
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)  # noqa: E731
    jax.tree.map(close, got, want)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (3, 3), (2, 8)])
def test_value_and_gradient(height, width):
    agree(lambda f: jax.value_and_grad(f, (0, 1)), height=height, width=width)


def test_forward_mode():
    agree(lambda f: lambda x, kernel: jax.jvp(f, (x, kernel), (x, kernel)))


def test_reverse_over_forward():
    def transform(f):
        tangent = lambda x, kernel: jax.jvp(lambda x: f(x, kernel), (x,), (x,))[1]  # noqa: E731
        return jax.grad(tangent, (0, 1))

    agree(transform, tolerance=1e-3)


def test_forward_over_reverse():
    gradient = lambda f: jax.grad(f, (0, 1))  # noqa: E731
    agree(lambda f: lambda *xs: jax.jvp(gradient(f), xs, xs)[1], tolerance=1e-3)


def test_reverse_over_reverse():
    def transform(f):
        def size(x, kernel):
            return sum(jnp.square(g).sum() for g in jax.grad(f, (0, 1))(x, kernel))

        return jax.grad(size, (0, 1))

    agree(transform, tolerance=2e-3)


def test_gradient_of_each_image():
    def transform(f):
        each = jax.vmap(jax.grad(f, 1), (0, None))
        return lambda x, kernel: each(x[:, None], kernel)

    agree(transform)


def test_gradient_through_vmap_over_kernels():
    def transform(f):
        return jax.grad(lambda x, k: jax.vmap(f, (None, 0))(x, jnp.stack([k, 2 * k])).sum(), (0, 1))

    agree(transform)


def test_batch_sharded_over_devices():
    x, kernel, _ = case()
    x = jnp.concatenate([x] * 4)
    weight = jnp.arange(4.0)
    f = jax.jit(jax.grad(lambda x, k: (jnp.sin(convolve(x, k)) * weight).sum(), (0, 1)))
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    got, want = f(jax.device_put(x, sharding), kernel), f(x, kernel)
    assert got[0].sharding.is_equivalent_to(sharding, 4)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("platform", "plain"), [("cpu", False), ("cuda", True), ("tpu", True)])
def test_plain_xla_where_there_is_an_accelerator(platform, plain):
    x, kernel, loss = case()
    traced = jax.jit(jax.grad(loss(convolve), (0, 1))).trace(x, kernel)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("dot_general" in program) != plain
    assert program.count("stablehlo.convolution") == (3 if plain else 2)


@pytest.mark.parametrize(
    ("stride", "padding", "first"), [(1, (1, 1), -1), (2, (0, 1), 0), (2, (1, 1), -1)]
)
def test_where_the_window_lies(stride, padding, first):
    """With a kernel that picks one corner of the window, the output is the input, shifted."""
    network = functional(
        lambda rngs: Conv(1, 1, init="torch", dtype="float32", stride=stride, padding=padding)
    )
    params = {"kernel": jnp.zeros((3, 3, 1, 1)).at[2, 2].set(1), "bias": jnp.ones(1)}
    x = jnp.arange(1.0, 17).reshape(1, 4, 4, 1)
    padded = np.pad(np.asarray(x)[0, :, :, 0], ((0, 1), (0, 1)))
    corner = padded[first + 2 :: stride, first + 2 :: stride][: 4 // stride, : 4 // stride]
    np.testing.assert_array_equal(network.apply(params, x)[0, :, :, 0], corner + 1)
