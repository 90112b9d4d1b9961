"""How likely a model finds data; `diffusion.LIKELIHOOD_METHODS` names the ways for configs."""

from diffusion.likelihood.base import Method, Result
from diffusion.likelihood.chain import VLB
from diffusion.likelihood.continuous import VDM
from diffusion.likelihood.flow import ODE

__all__ = ["ODE", "VDM", "VLB", "Method", "Result"]
