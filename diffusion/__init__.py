"""The mathematics of diffusion: arrays in, arrays out.

A registry maps a name to a function of literal keyword arguments; a new component is one function
and one line here.
"""

from diffusion import (
    clipping,
    grids,
    guidance,
    importance,
    likelihood,
    parameterization,
    schedules,
    solvers,
    time_samplers,
    weightings,
)
from diffusion.denoiser import Prediction, clip, denoiser
from diffusion.guidance import Guidance, guide
from diffusion.levels import NoiseLevel
from diffusion.objective import Objective
from diffusion.pixels import to_model, to_uint8
from diffusion.sampler import integrate, sample, sample_keys
from diffusion.schedules import Schedule
from diffusion.solvers import Solver
from diffusion.uncertainty import Uncertainty

SCHEDULES = {
    "linear": schedules.linear,
    "scaled_linear": schedules.scaled_linear,
    "cosine": schedules.cosine,
    "sqrt": schedules.sqrt,
    "sigmoid": schedules.sigmoid,
    "laplace": schedules.laplace,
    "table": schedules.table,
    "vp": schedules.vp,
    "sub_vp": schedules.sub_vp,
    "ve": schedules.ve,
    "edm": schedules.edm,
    "shifted_cosine": schedules.shifted_cosine,
    "interpolated_cosine": schedules.interpolated_cosine,
    "rectified_flow": schedules.rectified_flow,
    "vdm": schedules.vdm,
    "vdm_scalar": schedules.vdm_scalar,
    "vdm_network": schedules.vdm_network,
    "zero_terminal_snr": schedules.zero_terminal_snr,
}
PARAMETERIZATIONS = {
    "eps": parameterization.Eps,
    "x0": parameterization.X0,
    "v": parameterization.V,
    "residual": parameterization.Residual,
    "flow": parameterization.Flow,
    "edm": parameterization.EDM,
}
WEIGHTINGS = {
    "constant": weightings.constant,
    "snr": weightings.snr,
    "truncated_snr": weightings.truncated_snr,
    "snr_plus_one": weightings.snr_plus_one,
    "min_snr": weightings.min_snr,
    "soft_min_snr": weightings.soft_min_snr,
    "p2": weightings.p2,
    "edm": weightings.edm,
    "sigmoid": weightings.sigmoid,
    "likelihood": weightings.likelihood,
}
TIME_SAMPLERS = {
    "uniform": time_samplers.uniform,
    "low_discrepancy": time_samplers.low_discrepancy,
    "loss_second_moment": importance.loss_second_moment,
    "log_normal": time_samplers.log_normal,
    "logit_normal": time_samplers.logit_normal,
    "mode": time_samplers.mode,
    "cosmap": time_samplers.cosmap,
    "laplace": time_samplers.laplace,
}
GRIDS = {
    "respaced": grids.respaced,
    "ddim_stride": grids.ddim_stride,
    "quadratic": grids.quadratic,
    "leading": grids.leading,
    "linspace": grids.linspace,
    "trailing": grids.trailing,
    "uniform": grids.uniform,
    "karras": grids.karras,
    "uniform_logsnr": grids.uniform_logsnr,
    "exponential": grids.uniform_logsnr,
    "align_your_steps": grids.align_your_steps,
}
SOLVERS = {
    "ddpm": solvers.ddpm,
    "ddim": solvers.ddim,
    "euler": solvers.euler,
    "euler_ancestral": solvers.euler_ancestral,
    "heun": solvers.heun,
    "rk4": solvers.rk4,
    "dpmpp_2s": solvers.dpmpp_2s,
    "dpmpp_3s": solvers.dpmpp_3s,
    "dpmpp_2m": solvers.dpmpp_2m,
    "dpmpp_3m": solvers.dpmpp_3m,
    "dpmpp_2m_sde": solvers.dpmpp_2m_sde,
    "dpmpp_3m_sde": solvers.dpmpp_3m_sde,
    "unipc": solvers.unipc,
    "deis": solvers.deis,
    "lms": solvers.lms,
    "pndm": solvers.pndm,
    "consistency": solvers.consistency,
    "flow_map": solvers.flow_map,
}
CLIPS = {"none": clipping.none, "static": clipping.static, "dynamic": clipping.dynamic}
GUIDANCES = {
    "classifier_free": guidance.classifier_free,
    "cfg_plus_plus": guidance.cfg_plus_plus,
    "adaptive_projected": guidance.adaptive_projected,
    "perturbed_attention": guidance.perturbed_attention,
    "autoguidance": guidance.autoguidance,
    "classifier": guidance.classifier,
}
LIKELIHOOD_METHODS = {
    "vlb": likelihood.VLB,
    "vdm": likelihood.VDM,
    "ode": likelihood.ODE,
}

__all__ = [
    "CLIPS",
    "GRIDS",
    "GUIDANCES",
    "LIKELIHOOD_METHODS",
    "PARAMETERIZATIONS",
    "SCHEDULES",
    "SOLVERS",
    "TIME_SAMPLERS",
    "WEIGHTINGS",
    "Guidance",
    "NoiseLevel",
    "Objective",
    "Prediction",
    "Schedule",
    "Solver",
    "Uncertainty",
    "clip",
    "denoiser",
    "guide",
    "integrate",
    "likelihood",
    "sample",
    "sample_keys",
    "to_model",
    "to_uint8",
]
