"""Golden values of improved-diffusion's calc_bpd_loop: openai_bound.npz beside this file.

    python make_openai_bound.py <checkout of github.com/openai/improved-diffusion>

Needs torch. As in make_openai.py the cast of tables to float32 is lifted: all values are float64.
"""

import pathlib
import sys

import numpy as np

sys.path.insert(0, sys.argv[1])
sys.path.insert(0, str(pathlib.Path(__file__).parent))
import torch
from improved_diffusion import gaussian_diffusion as gd
from improved_diffusion.respace import SpacedDiffusion, space_timesteps
from toy import eps_of, fraction_of


def extract64(table, timesteps, shape):
    values = torch.from_numpy(np.asarray(table, np.float64))[timesteps]
    return values.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)


gd._extract_into_tensor = extract64


def nchw(x):
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy())


rng = np.random.default_rng(0)
x0 = rng.integers(0, 256, (3, 4, 4, 3)) / 127.5 - 1.0
x0[:, 0, 0, 0], x0[:, 0, 0, 1] = -1.0, 1.0
golden = {"x0": x0}
for name, timesteps, steps in (("linear", 1000, 12), ("cosine", 25, 25)):
    key = f"{name}/{timesteps}/{steps}"
    # Row t is the noise of step t.
    noises = rng.standard_normal((steps, *x0.shape))
    golden[f"{key}/noise"] = noises
    for variance in ("FIXED_SMALL", "FIXED_LARGE", "LEARNED_RANGE"):
        for clip in (True, False):
            d = SpacedDiffusion(
                use_timesteps=space_timesteps(timesteps, [steps]),
                betas=gd.get_named_beta_schedule(name, timesteps),
                model_mean_type=gd.ModelMeanType.EPSILON,
                model_var_type=gd.ModelVarType[variance],
                loss_type=gd.LossType.RESCALED_MSE,
                rescale_timesteps=True,
            )

            def network(x, time, learned=variance == "LEARNED_RANGE"):
                time = time.double().reshape(-1, 1, 1, 1)
                eps = eps_of(torch, x, time)
                return torch.cat([eps, fraction_of(torch, x, time)], 1) if learned else eps

            # The loop goes from the last step to the first.
            order = iter(noises[::-1])
            torch.randn_like = lambda x, order=order: nchw(next(order))
            terms = d.calc_bpd_loop(network, nchw(x0), clip_denoised=clip)
            for field, value in terms.items():
                value = value.numpy()
                golden[f"{key}/{variance.lower()}/{clip}/{field}"] = (
                    value[:, ::-1] if value.ndim == 2 else value
                )

np.savez_compressed(pathlib.Path(__file__).parent / "openai_bound.npz", **golden)
