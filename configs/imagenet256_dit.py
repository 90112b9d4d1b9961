"""DiT-XL/2 on latents of ImageNet 256 x 256 (Peebles and Xie 2023, section 4).

    python main.py --config=configs/imagenet256_dit.py --workdir=gs://bucket/imagenet256_dit \\
        --config.data.source="records(path='/data/imagenet256_latents')"

674.8M parameters (`:s`, `:b`, `:l` are the smaller sizes), the linear schedule, learned variance,
400,000 steps at batch 256 for the paper's comparisons and 7M for its best, FID 2.27 at guidance
1.5.

The data are latents [32, 32, 4] of Stable Diffusion's autoencoder, made beforehand by a program
that has it: examples {"latent": float16 array, "label": int} in records that
`input_pipeline.convert` wrote. The paper encodes anew, with flips and a new sample of the
posterior, in each epoch; store both flips. Previews show three channels of the latents;
`--mode=sample` waits for an autoencoder here.

`:smoke` runs on a CPU in about a minute: a small DiT on the pixels of generated shapes.
"""

from ml_collections import ConfigDict

from configs import base, networks

SIZES = {
    "s": {"hidden_size": 384, "depth": 12, "num_heads": 6},
    "b": {"hidden_size": 768, "depth": 12, "num_heads": 12},
    "l": {"hidden_size": 1024, "depth": 24, "num_heads": 16},
}


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', 's', 'b', 'l' and 'smoke'."""
    base.check_variant(__file__, variant, ("", *SIZES, "smoke"))
    config = base.get_config()
    config.data.update(
        source="records(path='/data/imagenet256_latents', split='train')",
        image_size=32,
        channels=4,
        field="latent",
        scale=0.18215,
        workers=16,
    )
    config.model = networks.dit()
    config.model.update(num_classes=1000, null_class=True, dtype="bfloat16", remat=True)
    config.model.update(SIZES.get(variant, {}))
    config.diffusion.update(
        schedule="linear(timesteps=1000)",
        loss="hybrid",
        variance="learned_range",
        label_dropout=0.1,
    )
    config.train.update(steps=400_000, batch_size=256)
    config.optimizer.update(
        name="adamw(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)",
        learning_rate=1e-4,
        warmup_steps=0,
        clip_norm=0.0,
    )
    config.mesh.update(data=1, fsdp=-1)
    config.sample.update(
        solver="ddpm(variance='learned_range')",
        steps=250,
        clip="none",
        guidance=("classifier_free(scale=1.5)",),
    )
    if variant == "smoke":
        base.smoke(config, hidden_size=64, depth=2, num_heads=4, patch_size=4, remat=False)
        config.data.update(channels=3, field="image", scale=1.0)
        config.mesh.update(data=-1, fsdp=1)
    return config
