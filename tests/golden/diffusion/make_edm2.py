"""Golden uncertainty u(sigma) of EDM2's code, with its weights: edm2.npz.

    python make_edm2.py EDM2

Needs torch; EDM2 is a checkout of NVlabs/edm2.
"""

import pathlib
import sys

import numpy as np
import torch

sys.path.insert(0, sys.argv[1])
from training.networks_edm2 import MPConv, MPFourier

torch.manual_seed(0)
fourier, linear = MPFourier(128), MPConv(128, 1, kernel=[]).eval()
sigma = torch.logspace(-3, 2, 25)
with torch.no_grad():
    u = linear(fourier(sigma.log() / 4))[:, 0]
np.savez_compressed(
    pathlib.Path(__file__).parent / "edm2.npz",
    frequencies=fourier.freqs.numpy(),
    phases=fourier.phases.numpy(),
    kernel=linear.weight.detach().numpy()[0],
    sigma=sigma.numpy(),
    u=u.numpy(),
)
