"""Rules of one sampling step, from a noise level to the next.

Coefficients are made once on the host in float64 from differences of logsnr; the step itself only
multiplies and adds. Every solver takes every scaling (vp, ve, flow) and parameterization.
`diffusion.SOLVERS` names them for configs.
"""

from diffusion.solvers.analytic import EpsEstimates
from diffusion.solvers.ancestral import DDIM, DDPM, ddim, ddpm, euler_ancestral
from diffusion.solvers.base import Bound, Solver, at
from diffusion.solvers.flow_map import Consistency, FlowMap, consistency, flow_map
from diffusion.solvers.linear import Linear, LinearPlan, LinearState
from diffusion.solvers.multistep import (
    deis,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    dpmpp_3m_sde,
    lms,
)
from diffusion.solvers.pndm import pndm
from diffusion.solvers.runge_kutta import euler, heun, rk4
from diffusion.solvers.singlestep import dpmpp_2s, dpmpp_3s
from diffusion.solvers.unipc import unipc

__all__ = [
    "DDIM",
    "DDPM",
    "Bound",
    "Consistency",
    "EpsEstimates",
    "FlowMap",
    "Linear",
    "LinearPlan",
    "LinearState",
    "Solver",
    "at",
    "consistency",
    "ddim",
    "ddpm",
    "deis",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_3s",
    "euler",
    "euler_ancestral",
    "flow_map",
    "heun",
    "lms",
    "pndm",
    "rk4",
    "unipc",
]
