"""Features of DINOv2 (models.dinov2), what FD-DINOv2 is of (Stein et al., 2023)."""

import numpy as np

from evaluation import weights
from evaluation.extractors.base import Extractor, choose, exact
from evaluation.resize import RESIZES, rgb
from models.dinov2 import DINOv2Config, make_dinov2
from models.pretrained.dinov2 import dinov2_from_torch

# Weights, and what they are of.
MODELS = {"vitl14": DINOv2Config()}
_MEAN, _STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
_RESIZES = {name: RESIZES[name] for name in ("antialiased", "pil")}


def dinov2(
    model: str = "vitl14", resize: str = "antialiased", path: str = "", directory: str = ""
) -> Extractor:
    """Output 'embedding': the class token after the last norm, not normalized to a length.

    Args:
        model: 'vitl14', which published values are of.
        resize: to 224 pixels by a bicubic filter: 'antialiased' on floats (EDM2's), 'pil' on 8
            bits (dgm-eval's).
        path: file of the weights; by default `evaluation.weights` looks for it.
        directory: where published weights lie.
    """
    config = choose("dinov2", "model", model, MODELS)
    resized = choose("dinov2", "resize", resize, _RESIZES)
    file = weights.locate(f"dinov2_{model}", path, directory)
    params = weights.read(file, lambda tensors: dinov2_from_torch(tensors, config))
    network = make_dinov2(config)

    def apply(params, images):
        x = resized(rgb(images), config.image_size) / 255
        return {"embedding": network.apply(params, (x - _MEAN) / _STD)}

    return Extractor(
        name=f"dinov2-{model}-{resize}",
        outputs={"embedding": config.width},
        identity={
            "extractor": "dinov2",
            "model": model,
            "weights": weights.sha256(file),
            "resize": resize,
            "precision": "highest",
        },
        params=params,
        apply=exact(apply),
    )
