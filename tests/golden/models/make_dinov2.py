"""Outputs of small DINOv2 towers, for tests/models/pretrained/test_dinov2.py.

    PYTHONPATH=<clone of facebookresearch/dinov2> python tests/golden/models/make_dinov2.py

from the root of this repository. Needs torch and transformers. Writes dinov2.json (names and shapes
of both state dicts, the config of transformers') and dinov2.npz (class tokens).
"""

import json
import os
import pathlib

os.environ["XFORMERS_DISABLED"] = "1"

import generated
import numpy as np
import torch

# Without these declarations torchvision does not import beside a torch of another build.
library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from dinov2.models.vision_transformer import DinoVisionTransformer  # noqa: E402
from transformers import Dinov2Config, Dinov2Model  # noqa: E402

HERE = pathlib.Path(__file__).parent
WIDTH, DEPTH, HEADS, PATCH = 24, 3, 2, 14
# The table of positions is of 7 x 7 patches, and images have 7 x 7 and 3 x 3.
TABLE, SIDES = 98, (98, 42)


def fill(model: torch.nn.Module) -> dict[str, list[int]]:
    """Generated weights; gives their shapes."""
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    weights = {name: torch.tensor(generated.tensor(name, shape)) for name, shape in shapes.items()}
    model.load_state_dict(weights)
    model.eval()
    return shapes


if __name__ == "__main__":
    hub = DinoVisionTransformer(
        img_size=TABLE,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        init_values=1.0,
        block_chunks=0,
    )
    config = Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        image_size=TABLE,
        patch_size=PATCH,
    )
    other = Dinov2Model(config)
    shapes, arrays = {"hub": fill(hub), "transformers": fill(other)}, {}
    with torch.no_grad():
        for side in SIDES:
            arrays[f"hub/{side}"] = hub(torch.tensor(generated.images(2, 3, side))).numpy()
        output = other(torch.tensor(generated.images(2, 3, TABLE)))
        arrays[f"transformers/{TABLE}"] = output.pooler_output.numpy()
    for name, value in arrays.items():
        print(name, value.shape, value.std())
    (HERE / "dinov2.json").write_text(json.dumps(shapes))
    np.savez_compressed(HERE / "dinov2.npz", **arrays)
