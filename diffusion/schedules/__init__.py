"""Noise schedules; `diffusion.SCHEDULES` names them for configs."""

from diffusion.schedules.base import Schedule
from diffusion.schedules.continuous import EDM, RectifiedFlow, edm, rectified_flow
from diffusion.schedules.discrete import (
    Discrete,
    cosine,
    from_betas,
    from_log_alpha_bar,
    laplace,
    linear,
    scaled_linear,
    sigmoid,
    sqrt,
)
from diffusion.schedules.sde import sub_vp, ve, vp
from diffusion.schedules.shifted_cosine import interpolated_cosine, shifted_cosine
from diffusion.schedules.table import table
from diffusion.schedules.transforms import zero_terminal_snr
from diffusion.schedules.vdm import vdm, vdm_network, vdm_scalar

__all__ = [
    "EDM",
    "Discrete",
    "RectifiedFlow",
    "Schedule",
    "cosine",
    "edm",
    "from_betas",
    "from_log_alpha_bar",
    "interpolated_cosine",
    "laplace",
    "linear",
    "rectified_flow",
    "scaled_linear",
    "shifted_cosine",
    "sigmoid",
    "sqrt",
    "sub_vp",
    "table",
    "vdm",
    "vdm_network",
    "vdm_scalar",
    "ve",
    "vp",
    "zero_terminal_snr",
]
