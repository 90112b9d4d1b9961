"""All entries of the state dict are read, and what is not as it should be is refused by name.

What the network computes with them: tests/evaluation/extractors/test_inception.py.
"""

import json
import pathlib

import jax
import numpy as np
import pytest

from models.functional import count_parameters
from models.pretrained.inception import inception_from_torch

SHAPES = json.loads(pathlib.Path("tests/golden/models/inception.json").read_text())


def tensors():
    """Nothing but shapes."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in SHAPES.items()}


def test_every_entry_is_read():
    """566 of them; 94 counters and the bias are not kept."""
    assert len(SHAPES) == 566
    params = inception_from_torch(tensors())
    assert len(jax.tree.leaves(params)) == 566 - 94 - 1
    total = sum(int(np.prod(shape)) for shape in SHAPES.values())
    assert count_parameters(params) == total - 94 - 1008


@pytest.mark.parametrize(
    "name",
    [
        "Conv2d_1a_3x3.conv.weight",
        "Mixed_7c.branch3x3dbl_3b.bn.running_var",
        "Mixed_6d.branch1x1.bn.num_batches_tracked",
        "fc.weight",
        "fc.bias",
    ],
)
def test_an_entry_that_is_not_there_or_of_another_shape(name):
    given = tensors()
    given[name] = np.zeros((3, 2), np.float32)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        inception_from_torch(given)
    del given[name]
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        inception_from_torch(given)


def test_an_entry_too_many():
    """torchvision's network has an auxiliary output."""
    given = tensors() | {"AuxLogits.fc.bias": np.zeros(1000, np.float32)}
    with pytest.raises(ValueError, match=r"AuxLogits\.fc\.bias \(1000,\) has no place"):
        inception_from_torch(given)
