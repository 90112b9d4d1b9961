"""What both sides of the golden tests of EDM's networks are given."""

import numpy as np

from tests.golden.models import generated

SIZE = 16
SIGMAS = np.array([0.3, 1.0, 3.0], np.float32)
# One image of each kind: label and augmentation, no label, no augmentation.
LABELS = [3, 10, 9]
CLASSES = 10
AUGMENT = np.random.RandomState(1).standard_normal((3, 9)).astype(np.float32) * [[1], [1], [0]]
# Settings of the small networks, in our words.
SONG = {"channels": 32, "channel_mult": (1, 2), "num_res_blocks": 2, "attention_resolutions": (16,)}
ADM = {
    "channels": 64,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (16, 8),
}


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """`generated.tensor`, but the Fourier frequencies have their scale of 16."""
    fourier = name in ("map_noise.freqs", "all_modules.0.W")
    return generated.tensor(name, shape) * np.float32(80 if fourier else 1)
