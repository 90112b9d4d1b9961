"""Features of FID's Inception (models.inception), with its known ways to prepare an image."""

import jax.numpy as jnp

from evaluation import weights
from evaluation.extractors.base import Extractor, choose, exact
from evaluation.resize import RESIZES, rgb
from models.inception import CLASSES, POOL3, SIDE, SPATIAL, make_inception
from models.pretrained.inception import inception_from_torch

_SCALINGS = {"128": (128.0, 128.0), "127.5": (127.5, 127.5)}
_RESIZES = {name: RESIZES[name] for name in ("tf1", "torch", "clean")}


def inception(
    resize: str = "tf1", scaling: str = "128", path: str = "", directory: str = ""
) -> Extractor:
    """Outputs 'pool3' (FID, KID, precision and recall), 'spatial' (sFID), 'logits' (IS).

    Args:
        resize: to 299 pixels. 'tf1' as in FID's own graph (ADM, EDM, torch-fidelity); 'clean'
            (clean-fid); 'torch', PyTorch's bilinear filter (pytorch-fid).
        scaling: (x - 128) / 128, or with '127.5' pytorch-fid's (x - 127.5) / 127.5.
        path: file of the weights; by default `evaluation.weights` looks for it.
        directory: where published weights lie.
    """
    resized = choose("inception", "resize", resize, _RESIZES)
    middle, size = choose("inception", "scaling", scaling, _SCALINGS)
    file = weights.locate("inception", path, directory)
    params = weights.read(file, inception_from_torch)
    network = make_inception()

    def apply(params, images):
        x = (resized(rgb(images), SIDE) - middle) / size
        features = network.apply(params, x)
        return {name: jnp.float32(value) for name, value in features._asdict().items()}

    return Extractor(
        name=f"inception-{resize}-{scaling}",
        outputs={"pool3": POOL3, "spatial": SPATIAL, "logits": CLASSES},
        identity={
            "extractor": "inception",
            "weights": weights.sha256(file),
            "resize": resize,
            "scaling": scaling,
            "precision": "highest",
        },
        params=params,
        apply=exact(apply),
    )
