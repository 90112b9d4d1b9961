"""U-Nets in the layout of NVlabs/edm2."""

from collections.abc import Mapping

import numpy as np

from models.edm2_unet import EDM2UNetConfig, make_edm2_unet
from models.functional import Params
from models.pretrained.convert import Names, fill

_BLOCK = {
    "conv1": "conv_res0",
    "conv2": "conv_res1",
    "condition": "emb_linear",
    "shortcut": "conv_skip",
    "attention/qkv": "attn_qkv",
    "attention/projection": "attn_proj",
}


def edm2_unet_from_nvlabs(tensors: Mapping[str, np.ndarray], config: EDM2UNetConfig) -> Params:
    """Parameters of `EDM2UNet(config)` from a state dict of `Precond`.

    The uncertainty u(sigma) (logvar_fourier, logvar_linear) is no part of the network; it is left.
    """
    tensors = {
        key: _qkv_first(tensor, config) if ".attn_qkv." in key else tensor
        for key, tensor in tensors.items()
        if not key.startswith("logvar_")
    }
    return fill(make_edm2_unet(config), tensors, _names(config))


def _qkv_first(tensor: np.ndarray, config: EDM2UNetConfig) -> np.ndarray:
    """Output axis (head, channel, q | k | v) to ours, (q | k | v, head, channel)."""
    split = tensor.reshape(-1, config.head_channels, 3, *tensor.shape[1:])
    return np.moveaxis(split, 2, 0).reshape(tensor.shape)


def _names(config: EDM2UNetConfig) -> Names:
    names = {
        "": "unet",
        "fourier": "unet.emb_fourier",
        "time": "unet.emb_noise",
        "label": "unet.emb_label",
        "conv_in": f"unet.enc.{config.image_size}x{config.image_size}_conv",
        "conv_out": "unet.out_conv",
    }

    def add(room: str, ours: str, theirs: list[str]):
        for index, name in enumerate(theirs):
            names[f"{ours}/{index}"] = f"unet.{room}.{name}"
            names.update(
                {f"{ours}/{index}/{a}": f"unet.{room}.{name}.{b}" for a, b in _BLOCK.items()}
            )

    encoder, decoder = [], []
    for level, side in enumerate(config.resolutions):
        parts = ["down"] if level else []
        parts += [f"block{index}" for index in range(config.num_res_blocks)]
        encoder += [f"{side}x{side}_{part}" for part in parts]
    for level, side in reversed(list(enumerate(config.resolutions))):
        parts = ["in0", "in1"] if level == len(config.resolutions) - 1 else ["up"]
        parts += [f"block{index}" for index in range(config.num_res_blocks + 1)]
        decoder += [f"{side}x{side}_{part}" for part in parts]
    add("enc", "encoder", encoder)
    add("dec", "decoder", decoder)
    return names
