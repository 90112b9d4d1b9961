"""Diffusion priors in the layout of diffusers' `PriorTransformer`: Karlo, Kandinsky 2."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from models.functional import Params
from models.pretrained.convert import fill
from models.prior import PriorConfig, make_prior

_NAMES = {
    "caption/features": "encoder_hidden_states_proj",
    "caption/embedding": "embedding_proj",
    "time1": "time_embedding.linear_1",
    "time2": "time_embedding.linear_2",
    "image": "proj_in",
    "norm": "norm_out",
    "out": "proj_to_clip_embeddings",
}
_BLOCK = {
    "norm1": ("norm1",),
    "qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "projection": ("attn1.to_out.0",),
    "norm2": ("norm3",),
    "mlp1": ("ff.net.0.proj",),
    "mlp2": ("ff.net.2",),
}


class Standardization(NamedTuple):
    """The network's space is (embedding - mean) / std, of embeddings that are not normalized."""

    mean: Float[np.ndarray, " dim"]
    std: Float[np.ndarray, " dim"]


def prior_from_diffusers(
    tensors: Mapping[str, np.ndarray], config: PriorConfig
) -> tuple[Params, Standardization]:
    """(parameters of `Prior(config)`, `clip_mean` and `clip_std`) from a state dict.

    Raises:
        ValueError: the tensors are not those of the config; or it has null_text, which such
            networks do not (their null condition is the encoding of the empty caption).
    """
    if config.null_text:
        raise ValueError(
            "null_text=True: must be False for published priors; their null condition is the "
            "caption ''"
        )
    tensors = dict(tensors)
    stored = ("clip_mean", "clip_std", "prd_embedding", "positional_embedding")
    if missing := [key for key in stored if key not in tensors]:
        raise ValueError(f"the weights do not fit the config: no tensor {', '.join(missing)}")
    mean, std, query, positions = (tensors.pop(key)[0] for key in stored)
    tensors |= {"prior.prd_embedding": query[0], "prior.positional_embedding": positions}
    names = _NAMES | {"": "prior"}
    for ours, parts in _BLOCK.items():
        names[f"blocks/{ours}"] = tuple(f"blocks.{part}" for part in parts)
        for part in parts:
            # The axis of depth goes where the window of a convolution would stand, so that it
            # comes first in our layout.
            for kind in ("weight", "bias"):
                keys = [f"transformer_blocks.{k}.{part}.{kind}" for k in range(config.depth)]
                if all(key in tensors for key in keys):
                    axis = -1 if tensors[keys[0]].ndim == 2 else 0
                    stacked = np.stack([tensors.pop(key) for key in keys], axis)
                    tensors[f"blocks.{part}.{kind}"] = stacked
    return fill(make_prior(config), tensors, names), Standardization(mean, std)
