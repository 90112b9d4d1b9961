"""Accelerators by the names that people rent them under, and what each has."""

import dataclasses
import re

from training import flops
from training.components import ConfigError, nearest


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator; a chip is one JAX device.

    Attributes:
        device_kind: `jax.Device.device_kind`, by which `training.flops` knows its peak.
        memory: bytes, as its maker states them: GB of 10^9 for GPUs, GiB for TPUs.
        host: chips that one host has.
        torus: dimensions of a TPU's network; 0 for GPUs.
        cores: TensorCores of a chip where Google's names count these and not chips; else 1.
    """

    device_kind: str
    memory: float
    host: int
    torus: int = 0
    cores: int = 1

    def peak(self, dtype: str) -> float:
        """FLOP/s of products of this type."""
        return flops.peak_flops(self.device_kind, dtype)


# Memory of TPUs: Google Cloud's page of each version (GiB of HBM a chip); of GPUs: data sheets.
CHIPS = {
    "v4": Chip("TPU v4", 32 * 2**30, 4, 3, 2),
    "v5e": Chip("TPU v5 lite", 16 * 2**30, 4, 2),
    "v5p": Chip("TPU v5", 95 * 2**30, 4, 3, 2),
    "v6e": Chip("TPU v6 lite", 32 * 2**30, 4, 2),
    "a100-40g": Chip("NVIDIA A100-SXM4-40GB", 40e9, 8),
    "a100-80g": Chip("NVIDIA A100-SXM4-80GB", 80e9, 8),
    "h100": Chip("NVIDIA H100 80GB HBM3", 80e9, 8),
    "h200": Chip("NVIDIA H200", 141e9, 8),
}
# Sides of the largest cuboid of each kind; a v5e or v6e is a rectangle.
_SIDES = (1, 2, 4, 8, 16, 32)


@dataclasses.dataclass(frozen=True)
class Fleet:
    """`count` chips of a kind, as `--chips=v5p-256` asks for them."""

    name: str
    chip: Chip
    count: int

    @property
    def google_name(self) -> str:
        """What Google calls it: a v4 and a v5p by their TensorCores, 'v5p-512' for 256 chips."""
        return f"{self.name}-{self.count * self.chip.cores}" if self.chip.torus else ""

    @property
    def topology(self) -> str:
        """'4x8x8': the most cubic torus of that many chips; '' for GPUs.

        Raises:
            ConfigError: none has that many.
        """
        if not self.chip.torus:
            return ""
        shapes = _boxes(self.count, self.chip.torus)
        if not shapes:
            raise ConfigError(
                f"--chips={self.name}-{self.count}: slices are boxes with sides of 1, 2, 4, ... "
                "32 chips; take a power of two"
            )
        return "x".join(map(str, min(shapes, key=lambda shape: (max(shape), shape))))


def fleet(text: str) -> Fleet:
    """Reads 'v5p-256'.

    Raises:
        ConfigError: no such kind, or no number.
    """
    match = re.fullmatch(r"(.+)-(\d+)", text)
    if not match or not int(match[2]):
        raise ConfigError(f"--chips={text}: must be a kind and a number of chips, 'v5p-256'")
    if match[1] not in CHIPS:
        raise ConfigError(f"--chips={text}: no kind {match[1]!r}; {nearest(match[1], CHIPS)}")
    return Fleet(match[1], CHIPS[match[1]], int(match[2]))


def _boxes(count: int, dimensions: int) -> list[tuple[int, ...]]:
    """Sides, none smaller than the one before, whose product is `count`."""
    if dimensions == 1:
        return [(count,)] if count in _SIDES else []
    return [
        (side, *rest)
        for side in _SIDES
        if count % side == 0
        for rest in _boxes(count // side, dimensions - 1)
        if rest[0] >= side
    ]
