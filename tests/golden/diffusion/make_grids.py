"""Golden grids of diffusers, for Stable Diffusion's schedule and a flow: grids.json.

python make_grids.py
"""

import json
import pathlib

import diffusers
import numpy as np
from diffusers.schedulers import AysSchedules

STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
NAMES = {"sd15": "StableDiffusion", "sdxl": "StableDiffusionXL", "svd": "StableDiffusionVideo"}
golden = {}


def visited(name, steps, **kwargs):
    scheduler = getattr(diffusers, name)(**STABLE_DIFFUSION, **kwargs)
    scheduler.set_timesteps(steps)
    return scheduler


for steps in (4, 10, 30):
    for spacing in ("leading", "linspace", "trailing"):
        for name, solver in (("ddim", "DDIMScheduler"), ("dpm", "DPMSolverMultistepScheduler")):
            scheduler = visited(solver, steps, timestep_spacing=spacing)
            golden[f"{name}/{spacing}/{steps}"] = scheduler.timesteps.tolist()
    offset = visited("DDIMScheduler", steps, timestep_spacing="leading", steps_offset=1)
    golden[f"ddim/offset/{steps}"] = offset.timesteps.tolist()
    for kind in ("karras", "exponential"):
        scheduler = visited("EulerDiscreteScheduler", steps, **{f"use_{kind}_sigmas": True})
        golden[f"{kind}/{steps}"] = scheduler.sigmas.tolist()
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    # As its pipelines ask for it: without, the shift is applied twice.
    flow.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps))
    golden[f"shift/{steps}"] = flow.sigmas.tolist()
for ours, theirs in NAMES.items():
    golden[f"align_your_steps/{ours}"] = AysSchedules[f"{theirs}Sigmas"]

(pathlib.Path(__file__).parent / "grids.json").write_text(json.dumps(golden, indent=0))
