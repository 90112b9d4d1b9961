"""Improved DDPM on CIFAR-10, unconditional (Nichol and Dhariwal 2021, section 3 and table 2).

    python main.py --config=configs/cifar10_iddpm.py --workdir=runs/cifar10_iddpm

52.5M parameters, 4000 steps of the cosine schedule, 500,000 training steps at batch 128. The paper
reports FID 3.19 and 3.17 bits/dim for the hybrid loss, and for `:vlb`, the bound alone with its
importance sampling of t, FID 11.47 and 2.94 bits/dim. An accelerator takes days.

`:smoke` runs on a CPU in about a minute: a small network, and generated shapes for CIFAR-10.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', 'vlb' and 'smoke'."""
    base.check_variant(__file__, variant, ("", "vlb", "smoke"))
    config = base.get_config()
    config.data.update(
        source="tfds(name='cifar10', split='train')",
        image_size=32,
        channels=3,
        workers=4,
    )
    config.model.update(
        channels=128,
        channel_mult=(1, 2, 2, 2),
        num_res_blocks=3,
        attention_resolutions=(16, 8),
        num_heads=4,
        dropout=0.3,
        conditioning="scale_shift",
        resample="conv_symmetric",
        time_embedding="adm",
        norm_eps=1e-5,
        init="torch",
    )
    config.diffusion.update(
        schedule="cosine(timesteps=4000)", loss="hybrid", variance="learned_range"
    )
    if variant == "vlb":
        config.diffusion.update(loss="vlb", time_sampler="loss_second_moment")
    config.train.update(steps=500_000, batch_size=128)
    config.optimizer.update(
        name="adamw(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)",
        learning_rate=1e-4,
        warmup_steps=0,
        clip_norm=0.0,
    )
    config.sample.update(solver="ddpm(variance='learned_range')", steps=4000)
    if variant == "smoke":
        base.smoke(config)
    return config
