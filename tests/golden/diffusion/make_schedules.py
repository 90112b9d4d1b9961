"""Golden noise schedules of diffusers, score_sde and k-diffusion, in float64: schedules.npz.

    python make_schedules.py SCORE_SDE K_DIFFUSION

Needs torch and diffusers; SCORE_SDE and K_DIFFUSION are checkouts of yang-song/score_sde_pytorch
and crowsonkb/k-diffusion. diffusers' tables are float32; here torch.float32 stands for float64
while they are made. Its 'laplace' is kept as it is: see the test.
"""

import ast
import importlib
import math
import pathlib
import sys

import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr

golden = {"index": np.unique(np.r_[0, 1, 2, np.arange(9, 1000, 90), 997, 998, 999])}
golden["t"] = np.array([1e-5, 1e-3, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0])
rows, t = golden["index"], torch.from_numpy(golden["t"])

torch.float32 = torch.float64


def keep(name, **settings):
    scheduler = DDPMScheduler(num_train_timesteps=1000, **settings)
    assert scheduler.betas.dtype == torch.float64
    golden[f"diffusers/{name}"] = scheduler.alphas_cumprod.numpy()[rows]
    betas = rescale_zero_terminal_snr(scheduler.betas)
    golden[f"diffusers/zero_terminal/{name}"] = torch.cumprod(1 - betas, 0).numpy()[rows]


keep("linear", beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
keep("scaled_linear", beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
keep("cosine", beta_schedule="squaredcos_cap_v2")
keep("laplace", beta_schedule="laplace")

sys.path.insert(0, sys.argv[1])
sde_lib = importlib.import_module("sde_lib")

one = torch.ones(len(t), 1, 1, 1)
for name, sde in (("vp", sde_lib.VPSDE()), ("sub_vp", sde_lib.subVPSDE())):
    mean, std = sde.marginal_prob(one.double(), t)
    golden[f"score_sde/{name}/alpha"] = mean.flatten().numpy()
    golden[f"score_sde/{name}/sigma"] = std.numpy()
ve = sde_lib.VESDE(sigma_min=0.02, sigma_max=100)
golden["score_sde/ve/sigma"] = ve.marginal_prob(one.double(), t)[1].numpy()

# The one function that is wanted; its module needs more than is installed.
tree = ast.parse((pathlib.Path(sys.argv[2]) / "k_diffusion/utils.py").read_text())
(function,) = (n for n in tree.body if getattr(n, "name", "") == "rand_cosine_interpolated")
scope = {"math": math, "torch": torch, "stratified_with_settings": lambda *_, **__: t}
exec(compile(ast.Module([function], []), "k_diffusion", "exec"), scope)
for low, high in ((64, 64), (32, 256)):
    sigma = scope["rand_cosine_interpolated"](t.shape, 256, low, high, dtype=torch.float64)
    golden[f"k_diffusion/cosine/{low}/{high}"] = -2 * np.log(sigma.numpy())
np.savez_compressed(pathlib.Path(__file__).parent / "schedules.npz", **golden)
