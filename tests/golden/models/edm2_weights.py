"""Weights of EDM2's U-Net that both sides of a golden test make for themselves."""

import numpy as np

from tests.golden.models import generated


def tensor(name: str, shape: tuple[int, ...], even: bool = True) -> np.ndarray:
    """Float32 tensor of a state dict: weights as at initialization, gains away from zero.

    even: False gives each output channel a magnitude of its own, from 0.001 to 10.
    """
    draw = generated.tensor(name, shape)
    if name.endswith(("freqs", "phases")):
        draw = draw * 10 * np.pi
    elif name.endswith("gain"):
        draw = 0.5 + draw
    elif name.endswith("weight"):
        draw = draw * np.sqrt(np.prod(shape[1:]))
        if not even:
            draw = draw * np.logspace(-3, 1, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return np.asarray(draw, np.float32)


TIMES = np.array([-1.2, 0.1, 1.0], np.float32)
# Of five classes; 5 is no label.
LABELS = np.array([0, 4, 5])
# Balances and clipping that no default hides.
NETWORK = {
    "label_balance": 0.4,
    "concat_balance": 0.6,
    "res_balance": 0.35,
    "attn_balance": 0.25,
    "clip_act": 2.0,
}
# Three steps of Adam on inputs that change with the step.
STEPS, RATE, BETAS = 3, 0.01, (0.9, 0.99)


def batch(step: int, batch_size: int, channels: int, size: int):
    """Images and the targets of the raw output, float32 [batch, channels, size, size]."""
    shape = (batch_size, channels, size, size)
    random = np.random.RandomState(100 + step)
    return random.standard_normal(shape).astype("f4"), random.standard_normal(shape).astype("f4")
