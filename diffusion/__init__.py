"""The mathematics of diffusion: arrays in, arrays out.

A registry maps a name to a function of literal keyword arguments; a new component is one function
and one line here.
"""

from diffusion import grids, parameterization, schedules, solvers, time_samplers, weightings
from diffusion.denoiser import Prediction, clip, denoiser
from diffusion.guidance import classifier_free
from diffusion.levels import NoiseLevel
from diffusion.objective import Objective
from diffusion.pixels import to_model, to_uint8
from diffusion.sampler import sample, sample_keys
from diffusion.schedules import Schedule
from diffusion.solvers import Solver

SCHEDULES = {
    "linear": schedules.linear,
    "cosine": schedules.cosine,
    "rectified_flow": schedules.rectified_flow,
    "edm": schedules.edm,
}
PARAMETERIZATIONS = {
    "eps": parameterization.Eps,
    "x0": parameterization.X0,
    "v": parameterization.V,
    "flow": parameterization.Flow,
    "edm": parameterization.EDM,
}
WEIGHTINGS = {"constant": weightings.constant, "min_snr": weightings.min_snr}
TIME_SAMPLERS = {"uniform": time_samplers.uniform}
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
    "classifier_free",
    "clip",
    "denoiser",
    "sample",
    "sample_keys",
    "to_model",
    "to_uint8",
]
