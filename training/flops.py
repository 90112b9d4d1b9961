"""Floating-point operations of a program, what the device could do, and memory."""

import math
import resource
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from models import bilinear

# Peak dense TFLOP/s (10^12 operations a second, no sparsity) of one JAX device, as published:
# {device_kind: {arithmetic of the products: peak}}.
#   TPU: Google Cloud's page of each version; a figure there is for a chip. v2 and v3 chips are two
#     JAX devices (45 and 123 a chip), from v4 on a chip is one. Products are in bfloat16.
#   NVIDIA: the data sheet of each product; where that states only the figure "with sparsity", half
#     of it. V100 and T4 have no bfloat16 units.
_TPU = {
    "TPU v2": 22.5,
    "TPU v3": 61.5,
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5": 459.0,
    "TPU v5p": 459.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
}
_H100 = {"bfloat16": 989.5, "tensorfloat32": 494.5, "float32": 67.0}
_H100_PCIE = {"bfloat16": 756.5, "tensorfloat32": 378.0, "float32": 51.0}
_H100_NVL = {"bfloat16": 835.5, "tensorfloat32": 417.5, "float32": 60.0}
_A100 = {"bfloat16": 312.0, "tensorfloat32": 156.0, "float32": 19.5}
_GPU = {
    "NVIDIA H200": _H100,
    "NVIDIA H100 80GB HBM3": _H100,
    "NVIDIA H100 PCIe": _H100_PCIE,
    "NVIDIA H100 NVL": _H100_NVL,
    "NVIDIA H200 NVL": _H100_NVL,
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA A100-PCIE-40GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    "NVIDIA L4": {"bfloat16": 121.0, "tensorfloat32": 60.0, "float32": 30.3},
    "NVIDIA L40S": {"bfloat16": 362.0, "tensorfloat32": 183.0, "float32": 91.6},
    "NVIDIA A10": {"bfloat16": 125.0, "tensorfloat32": 62.5, "float32": 31.2},
    "Tesla V100-SXM2-16GB": {"float32": 15.7},
    "Tesla V100-SXM2-32GB": {"float32": 15.7},
    "Tesla V100-PCIE-16GB": {"float32": 14.0},
    "Tesla V100-PCIE-32GB": {"float32": 14.0},
    "Tesla T4": {"float32": 8.1},
}
PEAK_TFLOPS = {kind: {"bfloat16": peak} for kind, peak in _TPU.items()} | _GPU


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Published dense peak of one device in FLOP/s; None where there is no such figure.

    Args:
        device_kind: `jax.Device.device_kind`.
        dtype: type of the computation, "bfloat16" or "float32". JAX multiplies float32 arrays in
            bfloat16 on TPUs and in TF32 on NVIDIA GPUs since Ampere, so the peak is that of these
            units, unless `jax_default_matmul_precision` asks for others.
    """
    peaks = PEAK_TFLOPS.get(device_kind, {})
    units = dtype
    if dtype == "float32":
        precision = jax.config.jax_default_matmul_precision or "default"
        fast = next(
            (unit for unit in ("tensorfloat32", "float32", "bfloat16") if unit in peaks), ""
        )
        units = {"default": fast, "highest": "float32"}.get(precision, precision)
    return peaks[units] * 1e12 if units in peaks else None


def mfu(flops: float, seconds: float, devices: int, dtype: str, peak: float = 0.0) -> float | None:
    """Model FLOPs utilization: achieved FLOP/s over what the devices could do at best.

    Args:
        flops: operations of the work on all devices together.
        seconds: wall time of the work.
        devices: how many devices did it.
        dtype: type of the computation, for `peak_flops`.
        peak: FLOP/s of one device; 0: the published figure of the devices at hand.

    Returns:
        A fraction, or None where the peak of this kind of device is not known.
    """
    peak_of_one = peak or peak_flops(jax.devices()[0].device_kind, dtype)
    return None if peak_of_one is None else flops / (seconds * devices * peak_of_one)


def peak_memory() -> dict[str, int]:
    """Largest memory use so far in bytes: of the fullest local device, else of this process.

    The name tells which: `device_peak_bytes`, or `host_peak_rss_bytes` (resident memory of the
    process) on backends that keep no statistics, such as the CPU.
    """
    statistics = [device.memory_stats() for device in jax.local_devices()]
    if all(statistics):
        return {"device_peak_bytes": max(stats["peak_bytes_in_use"] for stats in statistics)}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"host_peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def count_flops(function: Callable[..., Any], *args: Any) -> int:
    """Operations of the matrix products and convolutions of one call, on all devices together.

    A multiplication with its addition is two, the convention of MFU (PaLM, arXiv:2204.02311,
    appendix B). Counted in the traced program: nothing is compiled, any device gives the same
    number, and the body of a scan (accumulated microbatches, steps of a sampler) counts as often as
    it runs, where XLA's own cost analysis counts it once. A convolution counts the products with
    pixels, not those with padding. Blocks that are recomputed (`model.remat`) count twice: for the
    model's FLOPs, trace it without.

    Args:
        function: traceable by JAX; jitted or not.
        *args: arrays, or `jax.ShapeDtypeStruct`s for them.

    Raises:
        ValueError: there is work in a loop whose number of rounds is decided at run time.
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def _of_jaxpr(jaxpr: Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: JaxprEqn) -> int:
    name = equation.primitive.name
    if name in _PRIMITIVES:
        return _PRIMITIVES[name](equation)
    inner = [_of_jaxpr(jaxpr) for jaxpr in _inner_jaxprs(equation)]
    if name == "scan":
        return equation.params["length"] * sum(inner)
    if name == "cond":
        return max(inner)
    if name == "shard_map":
        return equation.params["mesh"].size * sum(inner)
    if name == "while" and any(inner):
        raise ValueError(
            "cannot count the FLOPs of a while loop; use lax.scan, or fori_loop with fixed bounds"
        )
    return sum(inner)


def _inner_jaxprs(equation: JaxprEqn) -> Iterator[Jaxpr]:
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _dot(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[d] for d in contracted)


def _convolution(equation: JaxprEqn) -> int:
    params = equation.params
    left, right = (variable.aval.shape for variable in equation.invars)
    out = equation.outvars[0].aval.shape
    names = params["dimension_numbers"]
    total = 2 * out[names.out_spec[0]] * out[names.out_spec[1]] * right[names.rhs_spec[1]]
    for i, (stride, (before, _), spread, dilation) in enumerate(
        zip(
            params["window_strides"],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            strict=True,
        )
    ):
        # Pairs of an output and a kernel position that meet an input pixel.
        position = (
            np.arange(out[names.out_spec[2 + i]])[:, None] * stride
            + np.arange(right[names.rhs_spec[2 + i]]) * dilation
            - before
        )
        inside = (position >= 0) & (position <= (left[names.lhs_spec[2 + i]] - 1) * spread)
        total *= int((inside & (position % spread == 0)).sum())
    return total


def _bilinear(equation: JaxprEqn) -> int:
    """A primitive of `models.bilinear`, as XLA's operation that it stands for."""
    plain = bilinear.PLAIN[equation.primitive.name]
    avals = [variable.aval for variable in equation.invars]
    return _of_jaxpr(jax.make_jaxpr(plain)(*avals).jaxpr)


def _attention(products: int) -> Callable[[JaxprEqn], int]:
    """FLOPs of cuDNN's fused attention, as the `products` matrix products that it stands for."""

    def count(equation: JaxprEqn) -> int:
        query, key = (variable.aval.shape for variable in equation.invars[:2])
        batch, queries, heads, width = query
        return 2 * products * batch * heads * queries * key[1] * width

    return count


_PRIMITIVES: dict[str, Callable[[JaxprEqn], int]] = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    **dict.fromkeys(bilinear.PLAIN, _bilinear),
    "dot_product_attention_fwd_wrapper": _attention(products=2),
    "dot_product_attention_bwd_wrapper": _attention(products=4),
}
