"""Weights and images that both sides of the tests of Inception make for themselves."""

import zlib

import numpy as np

# Sides of the images, and how many there are of each.
SIDES, COUNT = (32, 299, 512), 2


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Of a state dict; a size that keeps activations of 94 layers near one."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) > 1:
        draw *= np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith("running_var"):
        draw = np.exp(0.2 * draw)
    elif name.endswith("weight"):
        draw = 1 + 0.2 * draw
    else:
        draw *= 0.2
    return draw.astype(np.float32)


def images(side: int) -> np.ndarray:
    """Uint8 [COUNT, side, side, 3]: smooth, with some noise, and clipped in places."""
    random = np.random.RandomState(side)
    x, y = np.meshgrid(*2 * (np.linspace(0, 1, side),))
    waves = [
        np.sin(2 * np.pi * (random.uniform(-4, 4) * x + random.uniform(-4, 4) * y + phase))
        for phase in random.uniform(size=COUNT * 3)
    ]
    waves = np.reshape(waves, (COUNT, 3, side, side)).transpose(0, 2, 3, 1)
    return np.clip(127 + 120 * waves + 30 * random.standard_normal(waves.shape), 0, 255).astype(
        np.uint8
    )
