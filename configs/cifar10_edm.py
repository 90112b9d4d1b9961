"""EDM on CIFAR-10: configuration F of Karras et al. 2022 (table 2; appendix F.1).

    python main.py --config=configs/cifar10_edm.py --workdir=runs/cifar10_edm
    python main.py --config=configs/cifar10_edm.py:ncsnpp --workdir=runs/cifar10_edm_ncsnpp

DDPM++ of 55.7M parameters (`:ncsnpp`: NCSN++ of 56.4M) under EDM's preconditioning, its loss and
the non-leaky augmentation; 200M images at batch 512. The paper reports FID 1.97 (NCSN++ 1.98) for
unconditional sampling with 18 Heun steps. `:conditional` adds the classes: FID 1.79.

The authors sum the loss over pixels where it is averaged here: that is another eps of Adam.

`:smoke` runs on a CPU in about a minute: a small network, and generated shapes for CIFAR-10.
"""

from ml_collections import ConfigDict

from configs import base, networks

IMAGES = 200_000_000
RAMP_UP = 10_000_000
BATCH = 512


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', 'conditional', 'ncsnpp' and 'smoke'."""
    base.check_variant(__file__, variant, ("", "conditional", "ncsnpp", "smoke"))
    config = base.get_config()
    config.data.update(
        source="tfds(name='cifar10', split='train')",
        image_size=32,
        channels=3,
        device_augmentation="edm(probability=0.12)",
        workers=4,
    )
    config.model = networks.song_unet()
    config.model.augment_dim = 9
    if variant == "ncsnpp":
        config.model.update(networks.NCSNPP)
    if variant == "conditional":
        config.model.num_classes = 10
    config.diffusion.update(
        schedule="edm(sigma_min=0.002, sigma_max=80.0, rho=7.0)",
        parameterization="edm(sigma_data=0.5)",
        weighting="edm(sigma_data=0.5)",
        time_sampler="log_normal(mean=-1.2, std=1.2)",
    )
    config.train.update(steps=IMAGES // BATCH, batch_size=BATCH)
    config.optimizer.update(
        name="adam(b1=0.9, b2=0.999, eps=1e-8)",
        learning_rate=1e-3,
        warmup_steps=RAMP_UP // BATCH,
        clip_norm=0.0,
    )
    config.ema = ConfigDict({"default": "halflife(images=500_000, rampup=0.05)"})
    config.sample.update(solver="ddim(eta=0.0)", grid="uniform", steps=35, clip="none")
    if variant == "smoke":
        base.smoke(
            config,
            channels=16,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(16,),
        )
    return config
