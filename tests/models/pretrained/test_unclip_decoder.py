"""The decoder of unCLIP and its reader against the classes of diffusers that Karlo is made of."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from models import count_parameters
from models.pretrained.diffusers_conditional import conditional_unet_config
from models.pretrained.unclip_decoder import decoder_from_diffusers
from models.unclip_decoder import UnCLIPDecoderConfig, make_unclip_decoder
from tests.golden.models import generated
from tests.models.pretrained.test_conditional_unets import COUNTS
from tests.models.pretrained.test_unets import relative_error

GOLDEN = pathlib.Path("tests/golden/models")
STORED = json.loads((GOLDEN / "unclip_decoder.json").read_text())
CONFIG = UnCLIPDecoderConfig(
    in_channels=3,
    out_channels=6,
    image_size=16,
    channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(8,),
    head_channels=16,
    dropout=0.0,
    conditioning="scale_shift",
    resample="resblock",
    time_embedding="adm",
    norm_groups=16,
    norm_eps=1e-5,
    init="torch",
    embedding_dim=6,
    embedding_scale=1.0,
    text_width=12,
    learned_null=True,
    context_length=5,
    text_dim=6,
)
KARLO = UnCLIPDecoderConfig(
    in_channels=3,
    out_channels=6,
    image_size=64,
    channels=320,
    channel_mult=(1, 2, 3, 4),
    num_res_blocks=3,
    attention_resolutions=(32, 16, 8),
    head_channels=64,
    conditioning="scale_shift",
    resample="resblock",
    time_embedding="adm",
    norm_eps=1e-5,
    embedding_dim=768,
    embedding_scale=1.0,
    text_width=1536,
    learned_null=True,
    context_length=77,
    text_dim=768,
)


def tensors(part):
    return {name: generated.tensor(name, s) for name, s in STORED["shapes"][part].items()}


def test_forward_with_the_embedding_and_without():
    golden = np.load(GOLDEN / "unclip_decoder.npz")
    told, batch = golden["told"], len(generated.TIMES)
    params = decoder_from_diffusers(tensors("unet"), tensors("text_proj"), CONFIG)
    apply = jax.jit(make_unclip_decoder(CONFIG).apply)
    x = generated.images(batch, 3, 16).transpose(0, 2, 3, 1)
    for case, absent in (("given", False), ("null", True)):
        condition = {
            "image_embedding": told[:, 0],
            "no_image": np.full(batch, absent),
            "text_embedding": told[:, 1],
            "text_features": told[:, 2:],
            "text_mask": golden["mask"],
            "no_text": np.zeros(batch, bool),
        }
        output = apply(params, x, np.array(generated.TIMES), condition)
        assert relative_error(np.asarray(output).transpose(0, 3, 1, 2), golden[case]) < 1e-5
    assert relative_error(golden["null"], golden["given"]) > 1e-2


def test_the_fields_are_those_of_diffusers():
    fields = dataclasses.asdict(CONFIG.unet) | {"embedding_dim": 4 * 32}
    assert fields == dataclasses.asdict(conditional_unet_config(STORED["config"]))


def test_karlos_size():
    """Counted by diffusers; where it has two layers whose outputs are added, ours has one bias."""
    shapes = jax.eval_shape(make_unclip_decoder(KARLO).init, jax.random.key(0))
    theirs = COUNTS["karlo-decoder"] + STORED["karlo"]
    assert count_parameters(shapes) == theirs - 4 * KARLO.channels
    assert theirs / 1e6 == pytest.approx(885.44 + 7.88, abs=0.01)


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("text_proj", "embedding_proj.bias"),
        ("text_proj", "text_encoder_hidden_states_norm.weight"),
        ("unet", "conv_in.weight"),
    ],
)
def test_a_missing_tensor_is_named(part, key):
    given = {name: tensors(name) for name in ("unet", "text_proj")}
    del given[part][key]
    with pytest.raises(ValueError, match=rf"no tensor {key}".replace(".", r"\.")):
        decoder_from_diffusers(given["unet"], given["text_proj"], CONFIG)


@pytest.mark.parametrize("fields", [{"text_width": 16}, {"context": "cross"}])
def test_another_network_is_refused(fields):
    other = dataclasses.replace(CONFIG, **fields)
    with pytest.raises(ValueError, match=r"the weights do not fit the config"):
        decoder_from_diffusers(tensors("unet"), tensors("text_proj"), other)
