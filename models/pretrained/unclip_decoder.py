"""Decoders of unCLIP in diffusers' layout: Karlo's UNet2DConditionModel and UnCLIPTextProjModel."""

from collections.abc import Mapping

import numpy as np

from models.functional import Params
from models.pretrained.convert import fill
from models.pretrained.diffusers import unet_from_diffusers
from models.unclip_decoder import UnCLIPDecoderConfig, make_unclip_decoder

_TIME = ("clip_image_embeddings_project_to_time_embeddings", "embedding_proj")
_TOKENS = "clip_extra_context_tokens_proj"
_NAMES = {
    "": "decoder",
    "image_tokens": _TOKENS,
    "text/projection": "encoder_hidden_states_proj",
    "text/norm": "text_encoder_hidden_states_norm",
}


def decoder_from_diffusers(
    unet: Mapping[str, np.ndarray], text_proj: Mapping[str, np.ndarray], config: UnCLIPDecoderConfig
) -> Params:
    """Parameters of `UnCLIPDecoder(config)` from the state dicts of both parts.

    The config has context='kv', text_dim, learned_null=True and embedding_scale=1.0: they are told
    CLIP's embeddings as they are, not of length 1. Their tokens of the image lie channel by
    channel, ours token by token.

    Raises:
        ValueError: the tensors are not those of the config.
    """
    tensors = dict(text_proj)
    wanted = [f"{name}.{kind}" for name in (*_TIME, _TOKENS) for kind in ("weight", "bias")]
    wanted.append("learned_classifier_free_guidance_embeddings")
    if missing := [key for key in wanted if key not in tensors]:
        raise ValueError(f"the weights do not fit the config: no tensor {', '.join(missing)}")
    weights, biases = ([tensors.pop(f"{name}.{k}") for name in _TIME] for k in ("weight", "bias"))
    # Two layers that are added are one of both inputs.
    time = {"weight": np.concatenate(weights, axis=1), "bias": biases[0] + biases[1]}
    unet = dict(unet) | {f"class_embedding.{kind}": value for kind, value in time.items()}
    for kind in ("weight", "bias"):
        value = tensors[f"{_TOKENS}.{kind}"]
        by_channel = value.reshape(-1, config.image_tokens, *value.shape[1:])
        tensors[f"{_TOKENS}.{kind}"] = by_channel.swapaxes(0, 1).reshape(value.shape)
    null = tensors.pop("learned_classifier_free_guidance_embeddings")
    tensors["decoder.learned_classifier_free_guidance_embeddings"] = null
    network = make_unclip_decoder(config)

    def rest(key) -> Params:
        return {name: value for name, value in network.init(key).items() if name != "unet"}

    parts = fill(network._replace(init=rest), tensors, _NAMES)
    return parts | {"unet": unet_from_diffusers(unet, config.unet)}
