"""Makes averages.npz: decays and post-hoc weights as EDM2, EDM and diffusers compute them.

    git clone https://github.com/NVlabs/edm2
    PYTHONPATH=edm2 python make_averages.py

Needs torch and diffusers. EDM's own code has its decay in the middle of the training loop; EDM2's
`TraditionalEMA` has the same formula and is read here by its effect on one number, at the images
that EDM counts (those before the step, EDM2 counts the step's own).
"""

import pathlib

import numpy as np
import torch
from diffusers.training_utils import EMAModel

from training import phema

STEPS = np.array([1, 2, 3, 5, 10, 100, 1000, 54321, 1_000_000])
BATCH = 48
arrays = {"steps": STEPS, "batch": BATCH}

for std in (0.01, 0.05, 0.1, 0.25):
    arrays[f"exponent_{std}"] = phema.std_to_exp(std)
    arrays[f"power_{std}"] = phema.power_function_beta(std, STEPS * BATCH, BATCH)


def decay(average, seen):
    """Decay of an update after `seen` images: what is left of 1 when 0 comes in."""
    average.ema.weight.data.fill_(1.0)
    average.update(cur_nimg=seen, batch_size=BATCH)
    return float(average.ema.weight)


net = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
net.weight.data.fill_(0.0)
for halflife, rampup in ((500_000, 0.05), (2000, 0.05), (2000, None)):
    average = phema.TraditionalEMA(net, halflife_Mimg=halflife / 1e6, rampup_ratio=rampup)
    found = [decay(average, int(step - 1) * BATCH) for step in STEPS]
    arrays[f"halflife_{halflife}_{rampup}"] = np.array(found)

for name, settings in {
    "ratio_0.9999": {},
    "warmup_0.9999": {"use_ema_warmup": True},
    "warmup_0.99_0.75_2": {"use_ema_warmup": True, "decay": 0.99, "power": 0.75, "inv_gamma": 2.0},
}.items():
    model = EMAModel(net.parameters(), **{"decay": 0.9999} | settings)
    arrays[name] = np.array([model.get_decay(int(step)) for step in STEPS])

# Stored averages: even steps of two widths, uneven ones, a single width.
cases = {
    "even": (np.repeat(np.arange(1, 9) * 250, 2), np.tile([0.05, 0.1], 8)),
    "uneven": (np.repeat([7, 31, 100, 640, 1000], 3), np.tile([0.03, 0.08, 0.2], 5)),
    "one": (np.arange(1, 13) * 40, np.full(12, 0.1)),
}
for name, (times, stds) in cases.items():
    wanted = np.array([0.05, 0.06, 0.1, 0.15, 0.2, 0.25])
    weights = phema.solve_posthoc_coefficients(times, stds, times[-1], wanted)
    arrays |= {f"{name}_times": times, f"{name}_stds": stds, f"{name}_weights": weights}
arrays["wanted"] = wanted
np.savez_compressed(pathlib.Path(__file__).with_name("averages.npz"), **arrays)
