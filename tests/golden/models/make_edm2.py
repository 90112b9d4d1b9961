"""Outputs, and three steps of training, of EDM2's U-Net, for the tests of it. Needs torch.

    python tests/golden/models/make_edm2.py EDM2

from the root of this repository; EDM2 is a checkout of github.com/NVlabs/edm2. Writes edm2.json
(names and shapes of the state dicts) and edm2.npz (outputs; for training, all tensors at its end).
"""

import json
import pathlib
import sys

# The checkout comes first: both have a package `training`.
sys.path.insert(0, ".")
sys.path.insert(0, sys.argv[1])

import numpy as np
import torch
from training.networks_edm2 import Precond

from tests.golden.models import edm2_weights, generated

HERE = pathlib.Path(__file__).parent


def network(shapes: dict, case: str, size: int, classes: int, even: bool = True, **settings):
    """A `Precond` filled with generated weights."""
    model = Precond(size, 3, classes, use_fp16=False, **settings)
    shapes[case] = {name: list(value.shape) for name, value in model.state_dict().items()}
    weights = {
        name: torch.tensor(edm2_weights.tensor(name, shape, even))
        for name, shape in shapes[case].items()
    }
    model.load_state_dict(weights)
    return model


def one_hot(labels, classes: int) -> torch.Tensor:
    """Rows of zeros for the label that means none."""
    return torch.eye(classes + 1)[torch.tensor(labels)][:, :classes]


def forward(model, classes: int) -> np.ndarray:
    """F of the three generated images."""
    x = torch.tensor(generated.images(len(edm2_weights.TIMES), 3, 8))
    labels = one_hot(edm2_weights.LABELS, classes) if classes else None
    share = []
    for block in [*model.unet.enc.values(), *model.unet.dec.values()][1:]:
        block.register_forward_hook(
            lambda block, _, out: share.append((out.abs() == block.clip_act).float().mean())
        )
    with torch.no_grad():
        output = model.eval().unet(x, torch.tensor(edm2_weights.TIMES), labels).numpy()
    print(f"std {output.std():.3f}, clipped {max(share):.3f}")
    return output


def train(model) -> dict[str, np.ndarray]:
    """Adam on the mean squared error of F; the weights as the next forward pass sets them."""
    unet = model.train().unet
    rate, betas = edm2_weights.RATE, edm2_weights.BETAS
    optimizer = torch.optim.Adam(unet.parameters(), lr=rate, betas=betas)
    times, labels = torch.tensor(edm2_weights.TIMES), one_hot(edm2_weights.LABELS, 5)
    losses = []
    for step in range(edm2_weights.STEPS):
        x, target = map(torch.tensor, edm2_weights.batch(step, len(times), 3, 4))
        loss = (unet(x, times, labels) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    unet(x, times, labels)
    print("losses", losses)
    return {f"trained/{name}": t.detach().numpy() for name, t in model.state_dict().items()}


if __name__ == "__main__":
    shapes = {}
    wide = {
        "model_channels": 16,
        "channel_mult": [1, 2, 3],
        "num_blocks": 1,
        "attn_resolutions": [4],
        "channels_per_head": 8,
        **edm2_weights.NETWORK,
    }
    values = {
        "labels": forward(network(shapes, "labels", 8, 5, **wide), 5),
        "uneven": forward(network(shapes, "uneven", 8, 0, even=False, **wide), 0),
    }
    tiny = {
        "model_channels": 4,
        "channel_mult": [1, 2],
        "num_blocks": 1,
        "attn_resolutions": [],
        "channels_per_head": 4,
    }
    values |= train(network(shapes, "training", 4, 5, even=False, **tiny))
    (HERE / "edm2.json").write_text(json.dumps(shapes))
    np.savez_compressed(HERE / "edm2.npz", **values)
