"""Weights and inputs that both sides of a golden test make for themselves."""

import zlib

import numpy as np


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float32 tensor of a state dict, of a size that keeps activations near one.

    RandomState's streams are frozen: every version of numpy gives the same numbers.
    """
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) > 1:
        draw /= np.sqrt(np.prod(shape[1:]))
    elif name.endswith("weight"):
        draw = 1 + 0.2 * draw
    else:
        draw *= 0.2
    return draw.astype(np.float32)


def images(batch: int, channels: int, size: int) -> np.ndarray:
    """Float32 [batch, channels, size, size], standard normal."""
    return np.random.RandomState(0).standard_normal((batch, channels, size, size)).astype("float32")


def normal(*shape: int) -> np.ndarray:
    """Float32, standard normal: the tokens and vectors that a network is told."""
    return np.random.RandomState(1).standard_normal(shape).astype("float32")


TIMES = [0, 37, 999]
LABELS = [0, 3, 9]
# Which of five tokens each image may see.
MASK = [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 0, 1, 0]]
