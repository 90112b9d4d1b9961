"""Output of a small DiT, for tests/models/pretrained/test_dit.py. Needs torch and timm.

    python tests/golden/models/make_dit.py DIT

from the root of this repository; DIT is a checkout of github.com/facebookresearch/DiT. Writes
dit.json (names and shapes of the state dict) and dit.npz (the output).
"""

import importlib.util
import json
import pathlib
import sys

sys.path.insert(0, ".")

import numpy as np
import torch

from tests.golden.models import generated

HERE = pathlib.Path(__file__).parent
# Of ten classes; 10 is no label.
LABELS = [0, 3, 10]

if __name__ == "__main__":
    # This repository has a package of the name `models`, too.
    spec = importlib.util.spec_from_file_location("dit", pathlib.Path(sys.argv[1]) / "models.py")
    dit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(dit)
    model = dit.DiT(8, 2, 3, hidden_size=48, depth=3, num_heads=4, mlp_ratio=3.0, num_classes=10)
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    weights = {name: torch.tensor(generated.tensor(name, shape)) for name, shape in shapes.items()}
    # The table of positions is the model's own.
    weights["pos_embed"] = model.pos_embed.data
    model.load_state_dict(weights)
    x = torch.tensor(generated.images(len(generated.TIMES), 3, 8))
    with torch.no_grad():
        output = model.eval()(x, torch.tensor(generated.TIMES), torch.tensor(LABELS)).numpy()
    print(f"{len(shapes)} tensors, output {output.shape} of std {output.std():.3f}")
    (HERE / "dit.json").write_text(json.dumps(shapes))
    np.savez_compressed(HERE / "dit.npz", output=output)
