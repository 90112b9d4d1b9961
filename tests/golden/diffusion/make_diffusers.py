"""Golden trajectories from diffusers' DDPMScheduler and DDIMScheduler: diffusers.npz.

    python make_diffusers.py

Needs torch and diffusers. Its float32 tables are replaced by float64 ones. Only what it shares
with this project is kept: 'leading' spacing with a step that divides 1000 (with 'linspace' its
DDIM steps to t - T // N whatever the next visited time), where the last step starts at t = 0 (it
adds noise in a last step from t > 0). It floors the posterior variance at 1e-20 where OpenAI
copies index 1, which no trajectory shows.
"""

import pathlib
import sys

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from toy import eps_of, fraction_of

STEPS = 10
rng = np.random.default_rng(1)
start = rng.standard_normal((2, 3, 3, 2))
noises = rng.standard_normal((STEPS, *start.shape))
golden = {"start": start, "noise": noises}


def run(scheduler, learned=False, **kwargs):
    """States after the first, the middle and the last step."""
    scheduler.set_timesteps(STEPS)
    scheduler.betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    scheduler.alphas = 1.0 - scheduler.betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, 0)
    scheduler.one = scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    golden["t"] = scheduler.timesteps.numpy()
    module = sys.modules[type(scheduler).__module__]
    x, trail = torch.from_numpy(np.moveaxis(start, -1, 1).copy()), []
    for k, t in enumerate(scheduler.timesteps):
        noise = torch.from_numpy(np.moveaxis(noises[k], -1, 1).copy())
        module.randn_tensor = lambda *args, noise=noise, **kwargs: noise
        out = eps_of(torch, x, float(t))
        if learned:
            out = torch.cat([out, fraction_of(torch, x, float(t))], 1)
        x = scheduler.step(out, t, x, **kwargs).prev_sample
        trail.append(np.moveaxis(x.numpy(), 1, -1))
    return np.stack([trail[0], trail[len(trail) // 2], trail[-1]])


common = {
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "timestep_spacing": "leading",
    "steps_offset": 0,
}
for variance in ("fixed_small", "fixed_large", "learned_range"):
    for clip in (True, False):
        scheduler = DDPMScheduler(variance_type=variance, clip_sample=clip, **common)
        golden[f"ddpm/{variance}/{clip}"] = run(scheduler, variance == "learned_range")
for eta in (0.0, 0.5, 1.0):
    for rederive in (True, False):
        scheduler = DDIMScheduler(clip_sample=True, set_alpha_to_one=True, **common)
        golden[f"ddim/{eta}/{'rederive' if rederive else 'raw'}"] = run(
            scheduler, eta=eta, use_clipped_model_output=rederive
        )
np.savez_compressed(pathlib.Path(__file__).parent / "diffusers.npz", **golden)
