"""Noise schedules; `diffusion.SCHEDULES` names them for configs."""

from diffusion.schedules.base import Schedule
from diffusion.schedules.continuous import EDM, RectifiedFlow, edm, rectified_flow
from diffusion.schedules.discrete import Discrete, cosine, linear

__all__ = [
    "EDM",
    "Discrete",
    "RectifiedFlow",
    "Schedule",
    "cosine",
    "edm",
    "linear",
    "rectified_flow",
]
