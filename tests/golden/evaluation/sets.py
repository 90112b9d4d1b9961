"""The sets that metrics are compared on, by a rule from a seed: nothing of them is stored."""

import numpy as np

DIMS = 64


def features(seed: int, count: int, dims: int = DIMS, shift: float = 0.0) -> np.ndarray:
    """Like those of Inception: not negative, a decaying spectrum, most of them often 0."""
    rng = np.random.RandomState(seed)
    spectrum = np.arange(1, dims + 1) ** -0.5
    mix = np.random.RandomState(7).randn(dims, dims) * spectrum[:, None]
    return np.maximum(rng.randn(count, dims) @ mix + 0.3 + shift, 0.0).astype(np.float32)


def pair(count: int = 900, others: int = 700) -> tuple[np.ndarray, np.ndarray]:
    """(generated, reference)."""
    return 1.1 * features(1, count, shift=0.1), features(2, others)


def alike(count: int = 900, others: int = 700) -> tuple[np.ndarray, np.ndarray]:
    """Both of one distribution."""
    return features(5, count), features(6, others)


def frechet_pairs() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pairs by the name of what is hard about them."""
    generated, reference = pair()
    scales = np.geomspace(1e-4, 1.0, DIMS, dtype=np.float32)
    scales[::6] = 0.0
    return {
        "plain": (generated, reference),
        "few generated": (generated[:40], reference),
        "few": (generated[:40], reference[:50]),
        "dead dimensions": (generated * scales, reference * scales),
        "float16": (generated.astype(np.float16), reference.astype(np.float16)),
        "identical": (reference, reference),
        "far": (generated + 100.0, reference),
    }


def logits(count: int = 1003, classes: int = 40) -> np.ndarray:
    rng = np.random.RandomState(3)
    return (4.0 * rng.randn(count, classes)).astype(np.float32)


def embeddings() -> tuple[np.ndarray, np.ndarray]:
    """(generated, reference), of length 1 in float64."""
    generated, reference = (x.astype(np.float64) - 0.5 for x in pair(300, 250))
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (generated, reference))


def images() -> tuple[np.ndarray, np.ndarray]:
    """(images, references), uint8 [5 24 31 3]: the third pair is equal, the last far apart."""
    rng = np.random.RandomState(4)
    grid = np.add.outer(np.arange(24), 2 * np.arange(31))[None, :, :, None]
    smooth = 127 + 100 * np.sin(grid / rng.uniform(4, 20, (5, 1, 1, 3)))
    noise = rng.randn(*smooth.shape) * np.array([2, 20, 0, 60, 400])[:, None, None, None]
    return tuple(np.clip(x, 0, 255).astype(np.uint8) for x in (smooth + noise, smooth))
