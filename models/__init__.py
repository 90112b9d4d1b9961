"""Flax NNX networks as pure functions of a dict of parameters.

`MODELS` maps a name to a function `(in_channels, out_channels, image_size, **fields)` that gives a
`Network`; `fields` are those of the config's model section beside 'name'. Networks of vectors, the
priors, have no images and so take the fields alone.
"""

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any

from models.autoregressive_prior import AutoregressivePriorConfig, make_autoregressive_prior
from models.baseline_priors import (
    LinearPriorConfig,
    MLPPriorConfig,
    make_linear_prior,
    make_mlp_prior,
)
from models.clip import CLIPConfig, make_clip
from models.dhariwal_unet import DhariwalUNetConfig, make_dhariwal_unet
from models.dit import DiTConfig, make_dit
from models.edm2_unet import EDM2UNetConfig, make_edm2_unet
from models.functional import Network, count_parameters
from models.prior import PriorConfig, make_prior
from models.song_unet import SongUNetConfig, make_song_unet
from models.unclip_decoder import UnCLIPDecoderConfig, make_unclip_decoder
from models.unclip_dit import UnCLIPDiTConfig, make_unclip_dit
from models.unet import UNetConfig, make_unet
from models.unet_encoder import UNetEncoderConfig, make_unet_encoder

__all__ = ["MODELS", "Network", "count_parameters"]


def _maker(
    settings: type, make: Callable[[Any], Network], images: bool = True
) -> Callable[..., Network]:
    """Builds a network from plain fields; `settings` is its frozen dataclass, `make` takes one."""
    allowed = [field.name for field in dataclasses.fields(settings)]

    def checked(fields: dict) -> dict:
        for name in fields:
            if name not in allowed:
                near = difflib.get_close_matches(name, allowed, 1, cutoff=0)[0]
                raise ValueError(
                    f"model.{name}: this network has no such field; did you mean {near!r}?"
                )
        # JSON has no tuples.
        return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}

    def build(in_channels: int, out_channels: int, image_size: int, **fields) -> Network:
        return make(settings(in_channels, out_channels, image_size, **checked(fields)))

    def build_of_vectors(**fields) -> Network:
        return make(settings(**checked(fields)))

    return build if images else build_of_vectors


MODELS: dict[str, Callable[..., Network]] = {
    "unet": _maker(UNetConfig, make_unet),
    "song_unet": _maker(SongUNetConfig, make_song_unet),
    "dhariwal_unet": _maker(DhariwalUNetConfig, make_dhariwal_unet),
    "edm2_unet": _maker(EDM2UNetConfig, make_edm2_unet),
    "dit": _maker(DiTConfig, make_dit),
    "unet_encoder": _maker(UNetEncoderConfig, make_unet_encoder),
    "unclip_decoder": _maker(UnCLIPDecoderConfig, make_unclip_decoder),
    "unclip_dit": _maker(UnCLIPDiTConfig, make_unclip_dit),
    "clip": _maker(CLIPConfig, make_clip),
    "prior": _maker(PriorConfig, make_prior, images=False),
    "autoregressive_prior": _maker(
        AutoregressivePriorConfig, make_autoregressive_prior, images=False
    ),
    "linear_prior": _maker(LinearPriorConfig, make_linear_prior, images=False),
    "mlp_prior": _maker(MLPPriorConfig, make_mlp_prior, images=False),
}
