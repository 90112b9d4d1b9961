"""Training data with one example that is not a number, for runs that have to live with it."""

import os

import numpy as np

from input_pipeline import convert
from input_pipeline.sources.base import Source

COUNT, BROKEN = 512, 77


class Patches(Source):
    """Smooth 8 px fields of numbers, one of which is NaN in one example."""

    name = "patches"
    fields = ("latent",)
    fingerprint = "patches-v1"

    def __len__(self) -> int:
        return COUNT

    def example(self, index, fields):
        """One field of numbers, float32 [8, 8, 1]."""
        random = np.random.Generator(np.random.Philox(key=(1, index)))
        x, y = np.meshgrid(*(np.linspace(0, np.pi, 8),) * 2)
        a, b, phase = random.uniform(0.5, 2.0, 3)
        latent = np.sin(a * x + phase) * np.cos(b * y)
        if index == BROKEN:
            latent[3, 3] = np.nan
        return {"latent": latent[..., None].astype(np.float32)}


def write(path: str | os.PathLike[str]) -> str:
    """Writes the data as records; returns the value of config.data.source that reads them."""
    convert.convert(Patches(), path, image_size=8, channels=1)
    return f"records(path='{os.path.abspath(path)}', split='train')"
