"""ADM on ImageNet 64 x 64, conditioned on the class (Dhariwal and Nichol 2021, table 11).

    python main.py --config=configs/imagenet64_adm.py --workdir=gs://bucket/imagenet64_adm

295.9M parameters; the paper trains 540,000 steps at batch 2048 and reports FID 2.07 (50,000
samples, 250 steps). Needs accelerators: bfloat16, the state sharded over fsdp. The data is TFDS's
`imagenet2012`, or a folder with one sub-folder a class:

    --config.data.source="folder(path='/data/imagenet', split='train')"

`:smoke` runs on a CPU in about a minute: a small network of the same kind on generated shapes.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '' and 'smoke'."""
    base.check_variant(__file__, variant, ("", "smoke"))
    config = base.get_config()
    config.data.update(
        source="tfds(name='imagenet2012', split='train')",
        image_size=64,
        channels=3,
        augmentations=("flip",),
        workers=16,
    )
    config.model.update(
        channels=192,
        channel_mult=(1, 2, 3, 4),
        num_res_blocks=3,
        attention_resolutions=(32, 16, 8),
        head_channels=64,
        dropout=0.1,
        conditioning="scale_shift",
        resample="resblock",
        time_embedding="adm",
        norm_eps=1e-5,
        init="torch",
        num_classes=1000,
        dtype="bfloat16",
        remat=True,
    )
    config.diffusion.update(
        schedule="cosine(timesteps=1000)", loss="hybrid", variance="learned_range"
    )
    config.train.update(steps=540_000, batch_size=2048)
    config.optimizer.update(
        name="adamw(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)",
        learning_rate=3e-4,
        warmup_steps=0,
        clip_norm=0.0,
    )
    config.mesh.update(data=1, fsdp=-1)
    config.sample.update(solver="ddpm(variance='learned_range')", steps=250)
    if variant == "smoke":
        base.smoke(config)
        config.model.update(head_channels=16, remat=False)
        config.mesh.update(data=-1, fsdp=1)
    return config
