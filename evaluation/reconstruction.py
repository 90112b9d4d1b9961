"""How near the pictures of an upsampler are to the true ones, pixel by pixel."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from evaluation import metrics
from training import tasks
from training.components import ConfigError

_FIELD = "config.evaluate.metrics"


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """PSNR and SSIM of an upsampler's samples: sample i was made of held-out image i, reduced."""

    def __call__(
        self,
        images: UInt8[np.ndarray, "count height width channels"],
        labels: Int[np.ndarray, " count"] | None,
        config: Any,
    ) -> dict[str, Any]:
        """Means over the samples and their standard errors; 'psnr' in dB.

        'identical' counts samples without any difference, which have no PSNR and are left out of
        its mean.

        Raises:
            ConfigError: the run is no upsampler.
        """
        task = tasks.make_task(config)
        if not hasattr(task, "true_images"):
            raise ConfigError(
                f"{_FIELD}: reconstruction compares samples with the images that they were made "
                f"of, and config.task = {config.task!r} makes them of nothing; take it for "
                "'super_resolution'"
            )
        true = task.true_images(np.arange(len(images), dtype=np.int32))
        values: dict[str, Any] = {"count": len(images)}
        for name, metric in (("psnr", metrics.psnr), ("ssim", metrics.ssim)):
            found = metric(images, true)
            if name == "psnr":
                values["identical"] = int(np.isinf(found).sum())
                found = found[np.isfinite(found)]
            if not len(found):
                continue
            values[name] = float(found.mean())
            if len(found) > 1:
                values[f"{name}_standard_error"] = float(found.std(ddof=1) / len(found) ** 0.5)
        return values
