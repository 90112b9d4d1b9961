"""Features of torch-fidelity's and pytorch-fid's networks, for tests/evaluation/extractors.

    python tests/golden/models/make_inception.py

Needs torch, torchvision, pillow, torch-fidelity 0.4.0,
pytorch-fid 0.3.0 and clean-fid 0.1.35. No weights are downloaded: all are generated. Writes
inception.json (names and shapes of the state dict) and inception.npz (features).
"""

import json
import pathlib

import numpy as np
import torch

# Without these declarations torchvision does not import beside a torch of another build.
library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import inception_weights as given  # noqa: E402
import pytorch_fid.inception  # noqa: E402
import torch_fidelity.feature_extractor_inceptionv3 as fidelity  # noqa: E402
from cleanfid.resize import make_resizer  # noqa: E402

HERE = pathlib.Path(__file__).parent
OUTPUTS = ("2048", "logits_unbiased", "768")
FID = fidelity.FeatureExtractorInceptionV3


def torch_fidelity_network() -> tuple[torch.nn.Module, dict[str, list[int]]]:
    """With generated weights, and their shapes."""
    kept = fidelity.load_state_dict_from_url, FID.load_state_dict
    fidelity.load_state_dict_from_url = lambda *args, **kwargs: None
    FID.load_state_dict = lambda self, tensors, strict=True: None
    model = FID("inception", list(OUTPUTS))
    fidelity.load_state_dict_from_url, FID.load_state_dict = kept
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(state(shapes))
    return model.eval(), shapes


def state(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """The generated state dict."""
    return {name: torch.as_tensor(given.tensor(name, shape)) for name, shape in shapes.items()}


def nchw(images: np.ndarray) -> torch.Tensor:
    """As PyTorch has images."""
    return torch.as_tensor(images.transpose(0, 3, 1, 2).copy())


def scaled_features(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Of images that are resized and scaled already (pytorch-fid's layers are the same)."""
    network.resize_input = network.normalize_input = False
    output = network(images)[0].flatten(1)
    network.resize_input = network.normalize_input = True
    return output


if __name__ == "__main__":
    network, shapes = torch_fidelity_network()
    pytorch_fid.inception.load_state_dict_from_url = lambda *args, **kwargs: state(shapes)
    other = pytorch_fid.inception.InceptionV3([3]).eval()
    branch, arrays = {}, {}
    network.Mixed_6d.branch1x1.register_forward_hook(
        lambda module, inputs, output: branch.update(output=output)
    )
    with torch.no_grad():
        for side in given.SIDES:
            images = given.images(side)
            pool3, logits, _ = network(nchw(images))
            # The order of TensorFlow's flattened output: rows, columns, channels.
            spatial = branch["output"][:, :7].permute(0, 2, 3, 1).flatten(1)
            arrays |= {
                f"{side}/pool3": pool3,
                f"{side}/logits": logits,
                f"{side}/spatial": spatial,
                f"{side}/pytorch_fid": other(nchw(images).float() / 255)[0].flatten(1),
            }
            clean = np.stack([make_resizer("PIL", False, "bicubic", (299, 299))(i) for i in images])
            arrays[f"{side}/clean_resized"] = torch.as_tensor(clean[:, ::23, ::23].copy())
            arrays[f"{side}/clean"] = scaled_features(other, (nchw(clean) - 128) / 128)
    arrays = {name: value.numpy() for name, value in arrays.items()}
    for name, value in arrays.items():
        print(name, value.shape, value.std())
    (HERE / "inception.json").write_text(json.dumps(shapes))
    np.savez_compressed(HERE / "inception.npz", **arrays)
