"""Parameters of published U-Nets, counted by their own code. Needs torch and diffusers.

    python make_counts.py IMPROVED_DIFFUSION

The argument is a checkout of github.com/openai/improved-diffusion. Writes counts.json.
"""

import json
import pathlib
import sys

import torch

# Flags of the README of improved-diffusion: (image_size, num_channels, class_cond).
IDDPM = {
    "iddpm-cifar10": (32, 128, False),
    "iddpm-imagenet64": (64, 128, False),
    "iddpm-imagenet64-class": (64, 192, True),
}
# Where the config.json of kakaobrain/karlo-v1-alpha/decoder is not the default.
KARLO = {
    "attention_head_dim": 64,
    "block_out_channels": [320, 640, 960, 1280],
    "class_embed_type": "identity",
    "cross_attention_dim": 1536,
    "down_block_types": ["ResnetDownsampleBlock2D"] + 3 * ["SimpleCrossAttnDownBlock2D"],
    "in_channels": 3,
    "layers_per_block": 3,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "out_channels": 6,
    "resnet_time_scale_shift": "scale_shift",
    "sample_size": 64,
    "up_block_types": 3 * ["SimpleCrossAttnUpBlock2D"] + ["ResnetUpsampleBlock2D"],
}

# Where that of kakaobrain/karlo-v1-alpha/super_res_first is not the default of UNet2DModel.
KARLO_SR = {
    "add_attention": False,
    "block_out_channels": [320, 640, 960, 1280],
    "down_block_types": 4 * ["ResnetDownsampleBlock2D"],
    "in_channels": 6,
    "layers_per_block": 3,
    "out_channels": 3,
    "sample_size": 256,
    "up_block_types": 4 * ["ResnetUpsampleBlock2D"],
}


def models() -> dict[str, torch.nn.Module]:
    """All without values."""
    from diffusers import UNet2DConditionModel, UNet2DModel
    from improved_diffusion.script_util import create_model

    made = {
        # Stable Diffusion 1.5 is the default but for the width of CLIP's tokens.
        "stable-diffusion-1.5": UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        "karlo-decoder": UNet2DConditionModel(**KARLO),
        "karlo-sr": UNet2DModel(**KARLO_SR),
    }
    for name, (image_size, num_channels, class_cond) in IDDPM.items():
        made[name] = create_model(
            image_size=image_size,
            num_channels=num_channels,
            num_res_blocks=3,
            learn_sigma=True,
            class_cond=class_cond,
            use_checkpoint=False,
            attention_resolutions="16,8",
            num_heads=4,
            num_heads_upsample=-1,
            use_scale_shift_norm=True,
            dropout=0.0,
        )
    return made


if __name__ == "__main__":
    sys.path.append(sys.argv[1])
    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in m.parameters()) for name, m in models().items()}
    text = json.dumps(counts, indent=2) + "\n"
    (pathlib.Path(__file__).parent / "counts.json").write_text(text)
    print(text)
