from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from training import flops as flops_module
from training.flops import PEAK_TFLOPS, count_flops, mfu, peak_flops, peak_memory

A = jax.ShapeDtypeStruct((8, 16), jnp.float32)
B = jax.ShapeDtypeStruct((16, 32), jnp.float32)
SQUARE = jax.ShapeDtypeStruct((16, 16), jnp.float32)
PRODUCT = 2 * 8 * 16 * 32


def _mesh():
    return Mesh(np.asarray(jax.devices()[:2]), ("data",))


def test_product_and_its_gradient():
    assert count_flops(jnp.matmul, A, B) == PRODUCT
    loss = lambda a, b: jnp.sin(a @ b).sum()  # noqa: E731
    assert count_flops(jax.jit(jax.grad(loss, argnums=(0, 1))), A, B) == 3 * PRODUCT


def test_batched_contraction():
    q = jax.ShapeDtypeStruct((2, 5, 3, 7), jnp.float32)
    k = jax.ShapeDtypeStruct((2, 11, 3, 7), jnp.float32)
    assert count_flops(partial(jnp.einsum, "bqhd,bkhd->bhqk"), q, k) == 2 * 2 * 3 * 5 * 11 * 7


@given(
    size=st.integers(3, 9),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    spread=st.integers(1, 3),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
)
@settings(max_examples=30, deadline=None)
def test_convolution_counts_what_xla_counts(
    size, kernel, stride, padding, spread, dilation, groups
):
    """XLA's cost analysis of one convolution, which leaves out padding as we do."""

    def convolve(x, w):
        return lax.conv_general_dilated(
            x,
            w,
            (stride, 1),
            (padding, (0, 0)),
            lhs_dilation=(spread, 1),
            rhs_dilation=(dilation, 1),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    x = jax.ShapeDtypeStruct((2, size, 5, 4), jnp.float32)
    w = jax.ShapeDtypeStruct((kernel, 3, 4 // groups, 6), jnp.float32)
    if 0 in jax.eval_shape(convolve, x, w).shape:
        return
    counted = jax.jit(convolve).lower(x, w).cost_analysis().get("flops", 0)
    assert count_flops(convolve, x, w) == counted


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_of_a_strided_convolution(groups):
    """Each of the two gradients pairs the same pixels and weights as the convolution itself."""

    def convolve(x, w):
        dims = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, w, (2, 2), "SAME", dimension_numbers=dims, feature_group_count=groups
        )

    x = jax.ShapeDtypeStruct((2, 9, 8, 4), jnp.float32)
    w = jax.ShapeDtypeStruct((3, 3, 4 // groups, 6), jnp.float32)
    both = jax.value_and_grad(lambda x, w: convolve(x, w).sum(), argnums=(0, 1))
    assert count_flops(both, x, w) == 3 * count_flops(convolve, x, w)


@pytest.mark.parametrize("length", [1, 4])
def test_scan_body_counts_as_often_as_it_runs(length):
    def power(x):
        return lax.scan(lambda x, _: (x @ x, None), x, None, length=length)[0]

    assert count_flops(jax.jit(power), SQUARE) == length * 2 * 16**3


def test_fixed_loop_is_counted_and_open_loop_refused():
    fixed = lambda x: lax.fori_loop(0, 5, lambda _, x: x @ x, x)  # noqa: E731
    assert count_flops(jax.grad(lambda x: fixed(x).sum()), SQUARE) == 3 * 5 * 2 * 16**3
    with pytest.raises(ValueError, match="while loop"):
        count_flops(lambda x: lax.while_loop(lambda x: x.sum() < 0, lambda x: x @ x, x), SQUARE)


def test_calls_branches_and_shards():
    cond = lambda x: lax.cond(x.sum() > 0, lambda x: x @ x @ x, lambda x: x @ x, x)  # noqa: E731
    assert count_flops(cond, SQUARE) == 2 * 2 * 16**3
    once = jax.checkpoint(lambda x: jnp.sin(x @ x))
    assert count_flops(jax.jit(once), SQUARE) == 2 * 16**3
    mesh = _mesh()
    split = jax.shard_map(
        jnp.matmul,
        mesh=mesh,
        in_specs=(PartitionSpec("data"), PartitionSpec()),
        out_specs=PartitionSpec("data"),
    )
    assert count_flops(split, A, B) == PRODUCT


def test_devices_do_not_change_the_count():
    mesh = _mesh()
    a = jax.device_put(np.zeros(A.shape, np.float32), NamedSharding(mesh, PartitionSpec("data")))
    assert count_flops(jax.jit(jnp.matmul), a, B) == PRODUCT


def test_fused_attention_counts_as_its_products(monkeypatch):
    """The trace of cuDNN's attention needs no GPU once its check for one is off."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda *_: 91000)
    q = jax.ShapeDtypeStruct((2, 16, 4, 64), jnp.bfloat16)

    def total(implementation, q, k, v):
        attended = jax.nn.dot_product_attention(q, k, v, implementation=implementation)
        return attended.astype(jnp.float32).sum()

    for change in (lambda f: f, partial(jax.grad, argnums=(0, 1, 2))):
        count = {
            name: count_flops(change(partial(total, name)), q, q, q) for name in ("xla", "cudnn")
        }
        assert count["cudnn"] == count["xla"] > 0


def test_peak_follows_the_units_that_do_the_work():
    assert peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989.5e12
    assert peak_flops("NVIDIA H100 80GB HBM3", "float32") == 494.5e12
    assert peak_flops("TPU v4", "float32") == 275e12
    assert peak_flops("Tesla V100-SXM2-16GB", "float32") == 15.7e12
    assert peak_flops("Tesla V100-SXM2-16GB", "bfloat16") is None
    assert peak_flops("cpu", "float32") is None
    with jax.default_matmul_precision("highest"):
        assert peak_flops("NVIDIA H100 80GB HBM3", "float32") == 67e12
        assert peak_flops("TPU v4", "float32") is None


def test_peaks_are_plausible():
    for kind, peaks in PEAK_TFLOPS.items():
        assert all(8 <= peak <= 1000 for peak in peaks.values()), kind
        order = [peaks[unit] for unit in ("float32", "tensorfloat32", "bfloat16") if unit in peaks]
        assert order == sorted(order), kind


def test_mfu(monkeypatch):
    assert mfu(1e12, seconds=2.0, devices=4, dtype="float32") is None  # a CPU
    assert mfu(1e12, seconds=2.0, devices=4, dtype="float32", peak=1e12) == 0.125
    monkeypatch.setattr(flops_module, "peak_flops", lambda kind, dtype: 5e11)
    assert mfu(1e12, seconds=2.0, devices=4, dtype="float32") == 0.25


def test_memory_of_the_process():
    memory = peak_memory()
    assert set(memory) == {"host_peak_rss_bytes"}
    assert 50e6 < memory["host_peak_rss_bytes"] < 1e12


def test_memory_of_the_fullest_device(monkeypatch):
    class Device:
        def __init__(self, peak):
            self.memory_stats = lambda: {"peak_bytes_in_use": peak}

    monkeypatch.setattr(flops_module.jax, "local_devices", lambda: [Device(3), Device(5)])
    assert peak_memory() == {"device_peak_bytes": 5}
