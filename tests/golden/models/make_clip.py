"""Outputs of small CLIPs, for tests/models/pretrained/test_clip.py. Needs torch and transformers.

    python tests/golden/models/make_clip.py

from the root of this repository. Writes clip.json (configs, and names and shapes of the state
dicts) and clip.npz (embeddings, features of tokens, logits; ids of CLIP's tokenizer).
"""

import json
import pathlib
import sys
import tempfile

sys.path.insert(0, ".")

import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from tests.golden.models import generated

HERE = pathlib.Path(__file__).parent
TEXT = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "vocab_size": 50,
    "max_position_embeddings": 7,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 4,
}
# By name: activation and end token; 2 is how old configs say "the largest id".
CONFIGS = {"old": ("quick_gelu", 2), "new": ("gelu", 40)}
# The end token is 40 in all, but not the largest id; there are two of either.
TOKENS = [[3, 9, 40, 45, 40, 45, 0], [3, 45, 11, 12, 13, 14, 40], [3, 40, 40, 40, 49, 40, 49]]
# A vocabulary of CLIP's form: every byte, every byte that ends a word, and a few merges.
MERGES = ["t h", "th e</w>", "c a", "ca t</w>", "i n", "in g</w>", "r e", "re d</w>"]
TEXTS = ["The  CAT's 12 red\ncats!! ending", "", "é ☃ <|endoftext|>", "red cat"]


def load(module: torch.nn.Module) -> dict[str, list[int]]:
    """Gives a module the generated weights; returns names and shapes."""
    weights = {name: list(value.shape) for name, value in module.state_dict().items()}
    module.load_state_dict(
        {name: torch.tensor(generated.tensor(name, shape)) for name, shape in weights.items()}
    )
    return weights


def vocabulary() -> dict[str, int]:
    """Of `MERGES`."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in visible]
    characters = [chr(byte) for byte in visible] + [chr(256 + n) for n in range(len(rest))]
    words = [*characters, *(c + "</w>" for c in characters)]
    words += [merge.replace(" ", "") for merge in MERGES]
    return {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}


if __name__ == "__main__":
    arrays, told = {}, {}
    images = torch.tensor(generated.images(3, 3, 8))
    for name, (activation, end) in CONFIGS.items():
        text = TEXT | {"hidden_act": activation, "eos_token_id": end}
        config = {
            "projection_dim": 20,
            "text_config": text,
            "vision_config": VISION | {"hidden_act": activation},
        }
        model = CLIPModel(CLIPConfig(**config, attn_implementation="eager")).eval()
        told[name] = {"config": config, "shapes": load(model)}
        with torch.no_grad():
            tower = model.text_model(input_ids=torch.tensor(TOKENS))
            vision = model.vision_model(pixel_values=images)
            arrays |= {
                f"{name}/text_features": tower.last_hidden_state,
                f"{name}/text_embedding": model.text_projection(tower.pooler_output),
                f"{name}/image_embedding": model.visual_projection(vision.pooler_output),
                f"{name}/logits": model(torch.tensor(TOKENS), images).logits_per_image,
            }
    alone = CLIPTextModel(CLIPConfig(**told["new"]["config"]).text_config).eval()
    told["text"] = {"shapes": load(alone)}
    with torch.no_grad():
        out = alone(torch.tensor(TOKENS))
    arrays |= {"text/text_features": out.last_hidden_state, "text/pooled": out.pooler_output}
    arrays = {name: value.numpy() for name, value in arrays.items()}

    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory)
        (path / "vocab.json").write_text(json.dumps(vocabulary()))
        (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
        tokenizer = CLIPTokenizer(
            vocab=vocabulary(), merges=[tuple(merge.split()) for merge in MERGES]
        )
        ids = tokenizer(TEXTS, padding="max_length", max_length=24, truncation=True)["input_ids"]
    arrays["ids"] = np.array(ids, np.int32)
    told["tokenizer"] = {"vocab": vocabulary(), "merges": MERGES, "texts": TEXTS}
    for name, value in arrays.items():
        print(name, value.shape, value.std())
    (HERE / "clip.json").write_text(json.dumps(told, ensure_ascii=False))
    np.savez_compressed(HERE / "clip.npz", **arrays)
