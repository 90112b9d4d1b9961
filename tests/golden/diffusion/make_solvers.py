"""Golden trajectories of solvers from k-diffusion, dpm-solver and diffusers: solvers.npz.

    python make_solvers.py <checkout of crowsonkb/k-diffusion> <checkout of LuChengTHU/dpm-solver>

Needs torch, scipy, tqdm and diffusers. All run in float64 on the closed-form denoiser `toy.x0_of`,
in y = x / alpha or, where they are variance preserving, rescaled to that. Stored are the states
before the steps `KEPT` and the last state; with churn the last state alone.
"""

import importlib
import itertools
import pathlib
import sys
import types

import numpy as np
import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from toy import sigma_lists, x0_of

# What k-diffusion's sampling.py imports and these samplers do not use.
for name in ("torchdiffeq", "torchsde"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["torchdiffeq"].odeint = None
package = types.ModuleType("k_diffusion")
package.__path__ = [f"{sys.argv[1]}/k_diffusion"]
sys.modules["k_diffusion"] = package
utils = types.ModuleType("k_diffusion.utils")
utils.append_dims = lambda x, ndim: x[(...,) + (None,) * (ndim - x.ndim)]
sys.modules["k_diffusion.utils"] = utils
sys.path += sys.argv[1:]

sampling = importlib.import_module("k_diffusion.sampling")
dpm_solver = importlib.import_module("dpm_solver_pytorch")

torch.set_default_dtype(torch.float64)
# diffusers casts what it computes to torch.float32 by that name.
torch.float32 = torch.float64

KEPT = (1, 2, 3, 5, 8)
alpha_bar = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))
rng = np.random.default_rng(5)
golden = {}


def keep(states, last):
    return np.stack([np.asarray(states[k]) for k in KEPT] + [np.asarray(last)])


def denoise(y, sigma, **_):
    sigma = torch.as_tensor(sigma).reshape(-1, *[1] * (y.ndim - 1))
    return x0_of(torch, y, sigma)


class Noises:
    """The given noise of each step, for all ways of k-diffusion to ask for it."""

    def __init__(self, noises):
        self.noises, self.k = torch.from_numpy(noises), -1

    def __call__(self, *_):
        self.k += 1
        return self.noises[self.k]


def k_diffusion(name, sigmas, start, noises, **kwargs):
    y, states = torch.from_numpy(sigmas[0] * start), []
    noise = Noises(noises)
    torch.randn_like = noise if "s_churn" in kwargs else torch.zeros_like
    if name.endswith(("_sde", "_ancestral")):
        kwargs["noise_sampler"] = noise
    record = lambda info: states.append(info["x"])  # noqa: E731
    last = getattr(sampling, f"sample_{name}")(
        denoise, y, torch.from_numpy(sigmas), callback=record, disable=True, **kwargs
    )
    return np.asarray(last)[None] if "s_churn" in kwargs else keep(states, last)


def dpm_solver_of_k_diffusion(order, sigmas, start):
    """DPM-Solver-2 and -3, in eps, along a list of sigmas that ends above 0."""
    solver = sampling.DPMSolver(denoise)
    y, states = torch.from_numpy(sigmas[0] * start), []
    step = getattr(solver, f"dpm_solver_{order}_step")
    t = torch.from_numpy(-np.log(sigmas))
    for now, after in itertools.pairwise(t):
        states.append(y)
        y, _ = step(y, now, after)
    return keep(states, y)


def singlestep(order, sigmas, start):
    """DPM-Solver++(2S, 3S) of the authors, on a variance-preserving path with t = -log sigma."""
    path = types.SimpleNamespace(
        marginal_lambda=lambda t: t,
        inverse_lambda=lambda t: t,
        marginal_log_mean_coeff=lambda t: -0.5 * torch.log1p(torch.exp(-2.0 * t)),
        marginal_alpha=lambda t: torch.sigmoid(2.0 * t) ** 0.5,
        marginal_std=lambda t: torch.sigmoid(-2.0 * t) ** 0.5,
    )

    def eps(x, t):
        t = t[:, None]
        y, sigma = x / path.marginal_alpha(t), torch.exp(-t)
        return (y - x0_of(torch, y, sigma)) / sigma

    solver = dpm_solver.DPM_Solver(eps, path, algorithm_type="dpmsolver++")
    update = {
        2: solver.singlestep_dpm_solver_second_update,
        3: solver.singlestep_dpm_solver_third_update,
    }[order]
    t = torch.from_numpy(-np.log(sigmas))
    x, states = torch.from_numpy(sigmas[0] * start) * path.marginal_alpha(t[0]), []
    for k in range(len(t) - 1):
        states.append(x / path.marginal_alpha(t[k]))
        x = update(x, t[k : k + 1], t[k + 1 : k + 2])
    return keep(states, x / path.marginal_alpha(t[-1]))


def diffusers(make, sigmas, start, noises=None, prediction="sample", **kwargs):
    """A scheduler of diffusers along given sigmas, as one of variance-preserving states."""
    scheduler = make(prediction_type=prediction, **kwargs)
    steps = len(sigmas) - 1
    scheduler.set_timesteps(steps)
    scheduler.sigmas = torch.from_numpy(sigmas)
    scheduler.timesteps = torch.arange(steps, 0, -1)
    alpha = 1.0 / (1.0 + torch.from_numpy(sigmas) ** 2) ** 0.5
    x, states = torch.from_numpy(sigmas[0] * start) * alpha[0], []
    for k, t in enumerate(scheduler.timesteps):
        y = x / alpha[k]
        states.append(y)
        out = denoise(y, sigmas[k])
        if prediction == "epsilon":
            out = (y - out) / sigmas[k]
        noise = {} if noises is None else {"variance_noise": torch.from_numpy(noises[k])}
        x = scheduler.step(out, t, x, **noise).prev_sample
    return keep(states, x / alpha[-1])


def flow_matching(make, sigmas, start):
    """A flow-matching scheduler of diffusers along the times of given sigmas, as y = x / alpha."""
    scheduler = make()
    time = torch.from_numpy(sigmas / (1.0 + sigmas))
    each = 2 if make is FlowMatchHeunDiscreteScheduler else 1
    scheduler.set_timesteps(len(time) - 1)
    visited = torch.cat([time[:1], time[1:-1].repeat_interleave(each)])
    scheduler.sigmas = torch.cat([visited, time[-1:]])
    scheduler.timesteps = 1000.0 * visited
    x, states = torch.from_numpy(sigmas[0] * start) * (1.0 - time[0]), []
    for k, t in enumerate(visited):
        if k % each == 0:
            states.append(x / (1.0 - t))
        x0 = denoise(x / (1.0 - t), t / (1.0 - t))
        scheduler._step_index = k
        x = scheduler.step((x - x0) / t, scheduler.timesteps[k], x).prev_sample
    return keep(states[: len(time) - 1], x)


def pndm(steps, start, skip):
    """PNDM and PLMS of diffusers, whose grid is its own: 'leading' steps of the linear schedule."""
    scheduler = PNDMScheduler(
        beta_start=1e-4, beta_end=0.02, skip_prk_steps=skip, set_alpha_to_one=True
    )
    scheduler.set_timesteps(steps)
    scheduler.betas = torch.linspace(1e-4, 0.02, 1000)
    scheduler.alphas_cumprod = torch.cumprod(1.0 - scheduler.betas, 0)
    scheduler.final_alpha_cumprod = torch.tensor(1.0)
    sigma = ((1.0 - alpha_bar) / alpha_bar) ** 0.5
    first = int(scheduler.timesteps[0])
    x = torch.from_numpy(sigma[first] * start) * alpha_bar[first] ** 0.5
    states = []
    for t in scheduler.timesteps:
        states.append(x)
        y = x / alpha_bar[t] ** 0.5
        x = scheduler.step((y - denoise(y, sigma[t])) / sigma[t], t, x).prev_sample
    return keep(states, x)


CHURN = {"s_churn": 5.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.007}
for key, sigmas in sigma_lists(np, alpha_bar).items():
    steps = len(sigmas) - 1
    start, noises = rng.standard_normal((2, 3)), rng.standard_normal((steps, 2, 3))
    golden |= {f"{key}/start": start, f"{key}/noise": noises}
    given = sigmas, start, noises
    above = sigmas[:-1]
    out = {
        "euler": k_diffusion("euler", *given),
        "euler_churn": k_diffusion("euler", *given, **CHURN),
        "euler_ancestral": k_diffusion("euler_ancestral", *given),
        "euler_ancestral_0.5": k_diffusion("euler_ancestral", *given, eta=0.5),
        "heun": k_diffusion("heun", *given),
        "heun_churn": k_diffusion("heun", *given, **CHURN),
        "lms": k_diffusion("lms", *given),
        "dpmpp_2s": k_diffusion("dpmpp_2s_ancestral", *given, eta=0.0),
        "dpmpp_2s_ancestral": k_diffusion("dpmpp_2s_ancestral", *given),
        "dpmpp_2s_ancestral_0.5": k_diffusion("dpmpp_2s_ancestral", *given, eta=0.5),
        "euler_flow": flow_matching(FlowMatchEulerDiscreteScheduler, sigmas, start),
        "heun_flow": flow_matching(FlowMatchHeunDiscreteScheduler, sigmas, start),
        "dpmpp_2m": k_diffusion("dpmpp_2m", *given),
        "dpmpp_2m_sde": k_diffusion("dpmpp_2m_sde", *given),
        "dpmpp_2m_sde_0.5": k_diffusion("dpmpp_2m_sde", *given, eta=0.5),
        "dpmpp_2m_sde_exact": k_diffusion("dpmpp_2m_sde", *given, solver_type="heun"),
        "dpmpp_3m_sde_reference": k_diffusion("dpmpp_3m_sde", *given),
        "dpm_2s": dpm_solver_of_k_diffusion(2, above, start),
        "dpm_3s": dpm_solver_of_k_diffusion(3, above, start),
        "dpmpp_2s_authors": singlestep(2, above, start),
        "dpmpp_3s": singlestep(3, above, start),
        "dpmpp_2m_taper": diffusers(DPMSolverMultistepScheduler, sigmas, start),
        "dpmpp_2m_exact": diffusers(DPMSolverMultistepScheduler, sigmas, start, solver_type="heun"),
        "dpmpp_3m_reference": diffusers(DPMSolverMultistepScheduler, sigmas, start, solver_order=3),
        # Wrong: see the test.
        "dpmpp_3m_sde_diffusers": diffusers(
            DPMSolverMultistepScheduler,
            *given,
            solver_order=3,
            algorithm_type="sde-dpmsolver++",
            lower_order_final=False,
        ),
    }
    for order in (1, 2, 3):
        for kind in ("bh1", "bh2"):
            # To clean data its bh1 is 0 * inf.
            out[f"unipc_{order}_{kind}"] = diffusers(
                UniPCMultistepScheduler,
                above if kind == "bh1" else sigmas,
                start,
                solver_order=order,
                solver_type=kind,
                final_sigmas_type="zero",
            )
        out[f"unip_{order}"] = diffusers(
            UniPCMultistepScheduler,
            sigmas,
            start,
            solver_order=order,
            disable_corrector=list(range(steps)),
            final_sigmas_type="zero",
        )
        out[f"deis_{order}"] = diffusers(
            DEISMultistepScheduler, above, start, None, "epsilon", solver_order=order
        )
    if key.startswith("linear"):
        out["pndm"] = pndm(steps, start, skip=False)
        out["plms"] = pndm(steps, start, skip=True)
    golden |= {f"{key}/{name}": value for name, value in out.items()}

# Digits of float32 are enough, and half the size.
single = {
    k: v if k.endswith(("start", "noise")) else v.astype(np.float32) for k, v in golden.items()
}
np.savez_compressed(pathlib.Path(__file__).parent / "solvers.npz", **single)
