"""Output of a small decoder of Karlo's kind, for tests/models/pretrained/test_unclip_decoder.py.

    python tests/golden/models/make_unclip_decoder.py

from the root of this repository. Needs torch and diffusers, whose `UNet2DConditionModel` and
`UnCLIPTextProjModel` it is. Writes unclip_decoder.json (names and shapes of both state dicts, the
config of the first, and the numbers of parameters of the second at Karlo's size) and
unclip_decoder.npz (outputs with the embedding and without).
"""

import json
import pathlib
import sys

sys.path.insert(0, ".")

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

from tests.golden.models import generated

HERE = pathlib.Path(__file__).parent
TOKENS, WIDTH, DIM, SIZE = 5, 12, 6, 16
UNET = {
    "attention_head_dim": 16,
    "block_out_channels": [32, 64],
    "class_embed_type": "identity",
    "cross_attention_dim": WIDTH,
    "down_block_types": ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
    "in_channels": 3,
    "layers_per_block": 1,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "norm_num_groups": 16,
    "out_channels": 6,
    "resnet_time_scale_shift": "scale_shift",
    "sample_size": SIZE,
    "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
}
# Number of parameters of Karlo's, whose decoder's is in counts.json.
KARLO = {"clip_embeddings_dim": 768, "time_embed_dim": 1280, "cross_attention_dim": 1536}
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], bool)


def fill(model: torch.nn.Module) -> dict[str, list[int]]:
    """Generated weights; gives their shapes."""
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    weights = {name: torch.tensor(generated.tensor(name, shape)) for name, shape in shapes.items()}
    model.load_state_dict(weights)
    model.eval()
    return shapes


if __name__ == "__main__":
    unet = UNet2DConditionModel(**UNET)
    text_proj = UnCLIPTextProjModel(
        clip_embeddings_dim=DIM, time_embed_dim=4 * 32, cross_attention_dim=WIDTH
    )
    shapes = {"unet": fill(unet), "text_proj": fill(text_proj)}
    batch = len(generated.TIMES)
    told = torch.tensor(generated.normal(batch, TOKENS + 2, DIM))
    # The first half of what it gives is without the image embedding, the second half with it.
    with torch.no_grad():
        context, embedding = text_proj(
            image_embeddings=told[:, 0],
            prompt_embeds=told[:, 1].repeat(2, 1),
            text_encoder_hidden_states=told[:, 2:].repeat(2, 1, 1),
            do_classifier_free_guidance=True,
        )
        output = unet(
            torch.tensor(generated.images(batch, 3, SIZE)).repeat(2, 1, 1, 1),
            torch.tensor(generated.TIMES).repeat(2),
            encoder_hidden_states=context,
            encoder_attention_mask=torch.tensor(
                np.pad(MASK, ((0, 0), (4, 0)), constant_values=1)
            ).repeat(2, 1),
            class_labels=embedding,
        ).sample.numpy()
    with torch.device("meta"):
        count = sum(value.numel() for value in UnCLIPTextProjModel(**KARLO).parameters())
    print(f"output {output.shape} of std {output.std():.3f}, {count} parameters of Karlo's")
    stored = {"config": UNET, "shapes": shapes, "karlo": count}
    (HERE / "unclip_decoder.json").write_text(json.dumps(stored))
    null, given = np.split(output, 2)
    np.savez_compressed(HERE / "unclip_decoder.npz", told=told, mask=MASK, null=null, given=given)
