"""Writes example.safetensors by the safetensors library, for tests/models/pretrained."""

import pathlib

import torch
from safetensors.torch import save_file

if __name__ == "__main__":
    ramp = torch.arange(6.0)
    tensors = {
        "float32": ramp.reshape(2, 3) / 7,
        "float16": ramp.half() / 8,
        "bfloat16": ramp.bfloat16().reshape(3, 2),
        "scalar": torch.tensor(2.5),
    }
    path = pathlib.Path(__file__).parent / "example.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
