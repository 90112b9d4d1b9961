"""Outputs of other people's U-Nets, for tests/models/pretrained. Needs torch and diffusers.

    python make_unets.py GUIDED_DIFFUSION IMPROVED_DIFFUSION

The arguments are checkouts of github.com/openai/guided-diffusion and openai/improved-diffusion.
Writes <case>.json (names and shapes of the state dict; for diffusers also its config) and
<case>.npz (the output [batch, channels, height, width] for the inputs of generated.py).
"""

import json
import pathlib
import sys

import generated
import numpy as np
import torch

HERE = pathlib.Path(__file__).parent
SIZE = 16


def save(case: str, model: torch.nn.Module, config=None, **inputs) -> None:
    """Fills `model` with generated weights, runs it and writes the two files of `case`."""
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    weights = {name: torch.tensor(generated.tensor(name, shape)) for name, shape in shapes.items()}
    model.load_state_dict(weights)
    x = torch.tensor(generated.images(len(generated.TIMES), 3, SIZE))
    with torch.no_grad():
        output = model.eval()(x, torch.tensor(generated.TIMES), **inputs)
    output = getattr(output, "sample", output).numpy()
    print(f"{case}: {len(shapes)} tensors, output {output.shape} of std {output.std():.3f}")
    (HERE / f"{case}.json").write_text(json.dumps({"config": config, "shapes": shapes}))
    np.savez_compressed(HERE / f"{case}.npz", output=output)


def diffusers_ddpm() -> None:
    """The architecture of google/ddpm-cifar10-32, narrower and with fewer levels."""
    from diffusers import UNet2DModel

    config = {
        "act_fn": "silu",
        "attention_head_dim": None,
        "block_out_channels": [32, 64, 64],
        "center_input_sample": False,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "in_channels": 3,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-6,
        "norm_num_groups": 16,
        "out_channels": 3,
        "sample_size": SIZE,
        "time_embedding_type": "positional",
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    }
    save("diffusers_ddpm", UNet2DModel(**config), config)


def diffusers_cross() -> None:
    """Stable Diffusion's blocks, one deeper than the others, told of a vector too."""
    from diffusers import UNet2DConditionModel

    config = {
        "attention_head_dim": 4,
        "block_out_channels": [32, 64],
        "class_embed_type": "simple_projection",
        "cross_attention_dim": 12,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "in_channels": 3,
        "layers_per_block": 1,
        "norm_num_groups": 16,
        "out_channels": 3,
        "projection_class_embeddings_input_dim": 6,
        "sample_size": SIZE,
        "transformer_layers_per_block": [2, 1],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    }
    save("diffusers_cross", UNet2DConditionModel(**config), config, **told(vector=6))


def diffusers_kv() -> None:
    """The blocks of unCLIP's decoder (kakaobrain/karlo-v1-alpha), narrower and fewer."""
    from diffusers import UNet2DConditionModel

    config = {
        "attention_head_dim": 16,
        "block_out_channels": [32, 64],
        "class_embed_type": "identity",
        "cross_attention_dim": 12,
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
    save("diffusers_kv", UNet2DConditionModel(**config), config, **told(vector=4 * 32))


def told(vector: int) -> dict[str, torch.Tensor]:
    """What a UNet2DConditionModel is told besides time."""
    batch = len(generated.TIMES)
    return {
        "encoder_hidden_states": torch.tensor(generated.normal(batch, 5, 12)),
        "encoder_attention_mask": torch.tensor(generated.MASK, dtype=torch.bool),
        "class_labels": torch.tensor(generated.normal(batch, vector)),
    }


def guided_diffusion() -> None:
    """ADM: scale-shift, resampling in residual blocks, channels per head, labels, learned sigma."""
    from guided_diffusion.unet import UNetModel

    model = UNetModel(
        image_size=SIZE,
        in_channels=3,
        model_channels=32,
        out_channels=6,
        num_res_blocks=1,
        attention_resolutions=(2, 4),
        channel_mult=(1, 2, 2),
        num_classes=10,
        num_head_channels=16,
        use_scale_shift_norm=True,
        resblock_updown=True,
        use_new_attention_order=True,
    )
    save("guided_diffusion", model, y=torch.tensor(generated.LABELS))


def improved_diffusion() -> None:
    """iDDPM: scale-shift, four heads in the first order, convolutions between levels."""
    from improved_diffusion.unet import UNetModel

    model = UNetModel(
        in_channels=3,
        model_channels=32,
        out_channels=6,
        num_res_blocks=2,
        attention_resolutions=(2,),
        channel_mult=(1, 2),
        num_heads=4,
        use_scale_shift_norm=True,
    )
    save("improved_diffusion", model)


if __name__ == "__main__":
    sys.path += sys.argv[1:3]
    diffusers_ddpm()
    diffusers_cross()
    diffusers_kv()
    guided_diffusion()
    improved_diffusion()
