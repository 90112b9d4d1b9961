"""Flax NNX networks as pure functions of a dict of parameters.

`MODELS` maps a name to a function `(in_channels, out_channels, image_size, **fields)` that gives a
`Network`; `fields` are those of the config's section beside 'name'.
"""

from collections.abc import Callable

from models.functional import Network, count_parameters, functional
from models.unet import UNet, UNetConfig

__all__ = ["MODELS", "Network", "count_parameters", "functional", "unet"]


def unet(in_channels: int, out_channels: int, image_size: int, **fields) -> Network:
    """The U-Net of `UNetConfig(in_channels, out_channels, image_size, **fields)`."""
    config = UNetConfig(in_channels, out_channels, image_size, **fields)
    return functional(lambda rngs: UNet(config, rngs=rngs))


MODELS: dict[str, Callable[..., Network]] = {"unet": unet}
