"""Guidance: a denoiser's prediction changed by what others predict.

A config names guidances by calls, applied in turn; `diffusion.GUIDANCES` has their names. Each adds
to what those before it left. docs/diffusion.md has formulas, sources and traps.
"""

from diffusion.guidance.base import Guidance, Run, calls, guide
from diffusion.guidance.classifier import classifier
from diffusion.guidance.contrast import autoguidance, classifier_free, perturbed_attention
from diffusion.guidance.manifold import CFGPlusPlus, adaptive_projected, cfg_plus_plus

__all__ = [
    "CFGPlusPlus",
    "Guidance",
    "Run",
    "adaptive_projected",
    "autoguidance",
    "calls",
    "cfg_plus_plus",
    "classifier",
    "classifier_free",
    "guide",
    "perturbed_attention",
]
