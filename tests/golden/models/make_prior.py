"""Output of a small diffusion prior, for tests/models/pretrained/test_prior.py.

    python tests/golden/models/make_prior.py

from the root of this repository. Needs torch and diffusers, whose `PriorTransformer` it is. Writes
prior.json (names and shapes of the state dict) and prior.npz (the output).
"""

import json
import pathlib
import sys

sys.path.insert(0, ".")

import numpy as np
import torch
from diffusers import PriorTransformer

from tests.golden.models import generated

HERE = pathlib.Path(__file__).parent
TOKENS, WIDTH, DIM = 5, 32, 12
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], bool)

if __name__ == "__main__":
    model = PriorTransformer(
        num_attention_heads=4,
        attention_head_dim=WIDTH // 4,
        num_layers=3,
        embedding_dim=DIM,
        num_embeddings=TOKENS,
        additional_embeddings=4,
        added_emb_type="prd",
    )
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    weights = {name: torch.tensor(generated.tensor(name, shape)) for name, shape in shapes.items()}
    model.load_state_dict(weights)
    batch = len(generated.TIMES)
    told = generated.normal(batch, TOKENS + 2, DIM)
    with torch.no_grad():
        output = model.eval()(
            torch.tensor(told[:, 0]),
            torch.tensor(generated.TIMES),
            proj_embedding=torch.tensor(told[:, 1]),
            encoder_hidden_states=torch.tensor(told[:, 2:]),
            attention_mask=torch.tensor(MASK),
        ).predicted_image_embedding.numpy()
    print(f"{len(shapes)} tensors, output {output.shape} of std {output.std():.3f}")
    (HERE / "prior.json").write_text(json.dumps(shapes))
    np.savez_compressed(HERE / "prior.npz", output=output, mask=MASK, told=told)
