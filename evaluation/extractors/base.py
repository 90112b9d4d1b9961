"""What a feature extractor is, and how it runs over many images."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from training import mesh as meshes
from training.components import ConfigError, nearest

Apply = Callable[[Any, Any], dict[str, Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class Extractor:
    """A network with frozen parameters, and all that is done to an image before it.

    Attributes:
        name: of the features that it gives; another resize is another name.
        outputs: length of each feature vector by name.
        identity: what decides the features, as JSON values.
        params: of the network.
        apply: (params, uint8 [batch height width channels]) -> {output: float32 [batch length]},
            to be jitted; images of any size, grey (one channel) or RGB.
    """

    name: str
    outputs: Mapping[str, int]
    identity: Mapping[str, Any]
    params: Any
    apply: Apply


def exact(apply: Apply) -> Apply:
    """`apply` with products in float32 to the last bit, also where a device prefers fewer."""

    @functools.wraps(apply)
    def in_full(params, images):
        with jax.default_matmul_precision("highest"):
            return apply(params, images)

    return in_full


def choose(extractor: str, argument: str, value: str, allowed: Mapping[str, Any]) -> Any:
    """allowed[value]; ConfigError that lists what there is."""
    if value not in allowed:
        raise ConfigError(f"extractor {extractor}: {argument}={value!r}: {nearest(value, allowed)}")
    return allowed[value]


class Runner:
    """An extractor on the devices of a mesh.

    Every device computes batches of one size, the last one filled up with zeros, so that the
    features of an image are the same whatever is beside it and however many devices there are.

    Args:
        extractor: what to run; its parameters are put on each device once.
        mesh: by default over all devices of this process.
        batch_size: images of a batch on one device.
    """

    def __init__(self, extractor: Extractor, mesh: Mesh | None = None, batch_size: int = 32):
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: must be positive")
        mesh = meshes.make_mesh(devices=jax.local_devices()) if mesh is None else mesh
        self.extractor, self.rows = extractor, batch_size * meshes.batch_ways(mesh)
        self._sharding = meshes.batch_sharding(mesh)
        self._params = jax.device_put(extractor.params, meshes.replicated(mesh))
        self._apply = jax.jit(extractor.apply, out_shardings=self._sharding)

    def __call__(
        self, images: UInt8[np.ndarray, "count height width channels"]
    ) -> dict[str, np.ndarray]:
        """Features of each image by the names of the outputs, float32 [count length]."""
        kept = {
            name: np.empty((len(images), length), np.float32)
            for name, length in self.extractor.outputs.items()
        }
        running = None
        for first in range(0, len(images), self.rows):
            some = images[first : first + self.rows]
            batch = np.zeros((self.rows, *images.shape[1:]), np.uint8)
            batch[: len(some)] = some
            # The device works at this batch while the host takes the one before.
            now = first, self._compute(jax.device_put(batch, self._sharding))
            if running:
                _keep(kept, *running)
            running = now
        if running:
            _keep(kept, *running)
        return kept

    def _compute(self, batch: jax.Array) -> dict[str, jax.Array]:
        # Here, too: some layers become products only when the program is lowered.
        with jax.default_matmul_precision("highest"):
            return self._apply(self._params, batch)


def _keep(kept: dict[str, np.ndarray], first: int, features: Mapping[str, jax.Array]) -> None:
    for name, rows in kept.items():
        part = rows[first : first + len(features[name])]
        part[:] = np.asarray(features[name])[: len(part)]
