"""The mathematics of diffusion: arrays in, arrays out.

A registry maps a name to a function of literal keyword arguments; a new component is one function
and one line here.
"""

from diffusion import (
    grids,
    importance,
    parameterization,
    schedules,
    solvers,
    time_samplers,
    weightings,
)
from diffusion.denoiser import Prediction, clip, denoiser
from diffusion.guidance import classifier_free
from diffusion.levels import NoiseLevel
from diffusion.objective import Objective
from diffusion.pixels import to_model, to_uint8
from diffusion.sampler import sample, sample_keys
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
GRIDS = {"respaced": grids.respaced, "uniform": grids.uniform}
SOLVERS = {"ddpm": solvers.ddpm, "ddim": solvers.ddim}

__all__ = [
    "GRIDS",
    "PARAMETERIZATIONS",
    "SCHEDULES",
    "SOLVERS",
    "TIME_SAMPLERS",
    "WEIGHTINGS",
    "NoiseLevel",
    "Objective",
    "Prediction",
    "Schedule",
    "Solver",
    "Uncertainty",
    "classifier_free",
    "clip",
    "denoiser",
    "sample",
    "sample_keys",
    "to_model",
    "to_uint8",
]
