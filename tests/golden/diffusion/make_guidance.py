"""Golden values of diffusers' guidance: guidance.npz.

    python make_guidance.py

Needs torch and diffusers. `conditional` and `null` are noise predictions [batch height width
channels] for the rescaling of Lin et al., and clean images for adaptive projected guidance.
"""

import pathlib

import numpy as np
import torch
from diffusers.guiders.adaptive_projected_guidance import normalized_guidance
from diffusers.guiders.guider_utils import rescale_noise_cfg

SCALE, SHARE, PARALLEL, THRESHOLD = 7.5, 0.7, 0.3, 2.0
rng = np.random.default_rng(2)
conditional, null = rng.standard_normal((2, 2, 4, 3, 2))
torch_conditional, torch_null = map(torch.from_numpy, (conditional, null))
guided = torch_null + SCALE * (torch_conditional - torch_null)
golden = {
    "conditional": conditional,
    "null": null,
    "numbers": np.array([SCALE, SHARE, PARALLEL, THRESHOLD]),
    "rescaled": rescale_noise_cfg(guided, torch_conditional, SHARE).numpy(),
    # Their scale with use_original_formulation is 0 where it is off.
    "projected": normalized_guidance(
        torch_conditional,
        torch_null,
        SCALE - 1.0,
        None,
        PARALLEL,
        THRESHOLD,
        use_original_formulation=True,
    ).numpy(),
}
np.savez_compressed(pathlib.Path(__file__).parent / "guidance.npz", **golden)
