"""FID's Inception in the layout of torch-fidelity and pytorch-fid: one state dict, two names."""

from collections.abc import Mapping

import jax
import numpy as np

from models.functional import Params
from models.inception import CLASSES, make_inception
from models.pretrained.convert import fill

_MODULES = {"conv": "conv", "norm": "bn"}


def inception_from_torch(tensors: Mapping[str, np.ndarray]) -> Params:
    """Parameters of `Inception` from the state dict of `weights-inception-2015-12-05`.

    What the network does not use, counters of batches and the bias of the logits, must be there
    with its shape, too.

    Raises:
        ValueError: names of all tensors that lack, are too many or have another shape.
    """
    network = make_inception()
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    paths = jax.tree_util.tree_leaves_with_path(shapes)
    modules = {"/".join(key.key for key in path[:-1]) for path, _ in paths}
    names = {module: _theirs(module) for module in modules}
    norms = [theirs for theirs in names.values() if theirs.endswith(".bn")]
    unused = {f"{norm}.num_batches_tracked": () for norm in norms} | {"fc.bias": (CLASSES,)}
    wrong = [
        f"{name} must be of shape {shape}, "
        + (f"not {np.shape(tensors[name])}" if name in tensors else "and is not there")
        for name, shape in unused.items()
        if name not in tensors or np.shape(tensors[name]) != shape
    ]
    if wrong:
        raise ValueError("these are not the weights of FID's Inception:\n  " + "\n  ".join(wrong))
    kept = {name: tensor for name, tensor in tensors.items() if name not in unused}
    return fill(network, kept, names)


def _theirs(module: str) -> str:
    *parts, last = module.split("/")
    return ".".join([*parts, _MODULES.get(last, last)])
