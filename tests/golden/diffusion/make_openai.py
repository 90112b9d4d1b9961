"""Golden values from improved-diffusion: openai.npz beside this file.

    python make_openai.py <checkout of github.com/openai/improved-diffusion>

Needs torch. The reference keeps float64 tables and casts them to float32 where they meet tensors;
here that cast is lifted, so all values are float64.
"""

import pathlib
import sys

import numpy as np

sys.path.insert(0, sys.argv[1])
sys.path.insert(0, str(pathlib.Path(__file__).parent))
import torch
from improved_diffusion import gaussian_diffusion as gd
from improved_diffusion.losses import discretized_gaussian_log_likelihood
from improved_diffusion.respace import SpacedDiffusion, space_timesteps
from toy import eps_of, fraction_of


def extract64(table, timesteps, shape):
    values = torch.from_numpy(np.asarray(table, np.float64))[timesteps]
    return values.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)


gd._extract_into_tensor = extract64
rng = np.random.default_rng(0)
golden = {}


def nchw(x):
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy())


def nhwc(x):
    return np.moveaxis(x.numpy(), 1, -1)


def diffusion(name, timesteps, spacing, variance, loss="RESCALED_MSE", mean="EPSILON"):
    return SpacedDiffusion(
        use_timesteps=space_timesteps(timesteps, spacing),
        betas=gd.get_named_beta_schedule(name, timesteps),
        model_mean_type=gd.ModelMeanType[mean],
        model_var_type=gd.ModelVarType[variance],
        loss_type=gd.LossType[loss],
        rescale_timesteps=True,
    )


# Which indices respacing visits.
for timesteps in (1000, 4000):
    for steps in (2, 3, 10, 21, 25, 50, 100, 250):
        golden[f"respaced/{timesteps}/{steps}"] = np.array(
            sorted(space_timesteps(timesteps, [steps])), np.int16
        )

# Tables of the full and the respaced chains, index 0 the least noisy.
for name, timesteps, steps in (
    ("linear", 1000, 1000),
    ("cosine", 4000, 4000),
    ("linear", 1000, 10),
    ("cosine", 400, 7),
):
    d = diffusion(name, timesteps, [steps], "LEARNED_RANGE")
    rows = [0, 1, 2, 5, steps // 2, steps - 2, steps - 1]
    golden[f"tables/{name}/{timesteps}/{steps}/rows"] = np.array(rows)
    for key, table in {
        "alphas_cumprod": d.alphas_cumprod,
        "posterior_variance": d.posterior_variance,
        "posterior_log_variance_clipped": d.posterior_log_variance_clipped,
        "posterior_mean_coef1": d.posterior_mean_coef1,
        "posterior_mean_coef2": d.posterior_mean_coef2,
        "log_betas": np.log(d.betas),
    }.items():
        golden[f"tables/{name}/{timesteps}/{steps}/{key}"] = table[rows]

# q_sample, posterior mean, bound and training losses at chosen times.
x0 = rng.integers(0, 256, (7, 4, 4, 3)) / 127.5 - 1.0
x0[:, 0, 0, 0], x0[:, 0, 0, 1] = -1.0, 1.0
eps = rng.standard_normal(x0.shape)
t = np.array([0, 0, 1, 2, 50, 500, 999])
out = np.concatenate(
    [eps + 0.1 * rng.standard_normal(x0.shape), rng.uniform(-1.2, 1.2, x0.shape)], -1
)
golden |= {"train/x0": x0, "train/eps": eps, "train/t": t, "train/out": out}
tt = torch.from_numpy(t)
for name in ("linear", "cosine"):
    d = diffusion(name, 1000, [1000], "LEARNED_RANGE")
    z = d.q_sample(nchw(x0), tt, noise=nchw(eps))
    golden[f"train/{name}/z"] = nhwc(z)
    golden[f"train/{name}/posterior_mean"] = nhwc(d.q_posterior_mean_variance(nchw(x0), z, tt)[0])
    for mean in ("EPSILON", "START_X"):
        raw = out.copy()
        if mean == "START_X":
            raw[..., :3] = x0 + 0.1 * (out[..., :3] - eps)
        golden[f"train/{name}/{mean}/raw"] = raw[..., :3]
        for loss in ("RESCALED_MSE", "RESCALED_KL"):
            d = diffusion(name, 1000, [1000], "LEARNED_RANGE", loss, mean)
            terms = d.training_losses(lambda x, time, r=raw: nchw(r), nchw(x0), tt, noise=nchw(eps))
            for key, value in terms.items():
                golden[f"train/{name}/{mean}/{loss}/{key}"] = value.numpy()

# The tanh approximation of the discretised Gaussian, out to its floor.
grid = rng.integers(0, 256, 60) / 127.5 - 1.0
grid[:2] = -1.0, 1.0
means = grid + rng.standard_normal(60) * np.geomspace(1e-3, 1, 60)
log_scales = np.log(np.geomspace(3e-3, 1, 60))
golden |= {
    "likelihood/x": grid,
    "likelihood/mean": means,
    "likelihood/log_std": log_scales,
    "likelihood/log_p": discretized_gaussian_log_likelihood(
        torch.from_numpy(grid),
        means=torch.from_numpy(means),
        log_scales=torch.from_numpy(log_scales),
    ).numpy(),
}


def network(x, time, learned):
    time = time.double().reshape(-1, 1, 1, 1)
    eps = eps_of(torch, x, time)
    return torch.cat([eps, fraction_of(torch, x, time)], 1) if learned else eps


def trajectory(d, step, start, noises, learned=False, **kwargs):
    """States after the first, the middle and the last step."""
    x, trail = nchw(start), []
    for k, index in enumerate(reversed(range(len(noises)))):
        torch.randn_like = lambda x, k=k: nchw(noises[k])
        x = getattr(d, step)(
            lambda x, time: network(x, time, learned), x, torch.full((2,), index), **kwargs
        )["sample"]
        trail.append(nhwc(x))
    return np.stack([trail[0], trail[len(trail) // 2], trail[-1]])


# Trajectories over respaced chains, with given noise.
for name, timesteps, steps in (("linear", 1000, 10), ("cosine", 400, 7)):
    start = rng.standard_normal((2, 3, 3, 2))
    noises = rng.standard_normal((steps, *start.shape))
    key = f"sample/{name}/{timesteps}/{steps}"
    golden |= {f"{key}/start": start, f"{key}/noise": noises}
    for clip in (True, False):
        for variance in ("FIXED_SMALL", "FIXED_LARGE", "LEARNED_RANGE"):
            golden[f"{key}/ddpm/{variance.lower()}/{clip}"] = trajectory(
                diffusion(name, timesteps, [steps], variance),
                "p_sample",
                start,
                noises,
                variance == "LEARNED_RANGE",
                clip_denoised=clip,
            )
        for eta in (0.0, 0.5, 1.0):
            golden[f"{key}/ddim/{eta}/{clip}"] = trajectory(
                diffusion(name, timesteps, [steps], "FIXED_SMALL"),
                "ddim_sample",
                start,
                noises,
                clip_denoised=clip,
                eta=eta,
            )

np.savez_compressed(pathlib.Path(__file__).parent / "openai.npz", **golden)
