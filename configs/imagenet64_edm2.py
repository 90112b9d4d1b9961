"""EDM2-S on ImageNet 64 x 64, class-conditional (Karras et al. 2024, table 5, configuration G).

    python main.py --config=configs/imagenet64_edm2.py --workdir=gs://bucket/imagenet64_edm2

280.2M parameters, magnitude-preserving; 1074M images at batch 2048. The paper reports FID 1.58 at
63 network calls, with the length of the average chosen after training:

    python main.py --mode=sample --workdir=... --config.sample.ema="posthoc(std=0.075)"

`:xs` is EDM2-XS (124.7M). Needs accelerators. The data is TFDS's `imagenet2012`, or a folder with
one sub-folder a class.

`:smoke` runs on a CPU in about a minute: a small network, and generated shapes for ImageNet.
"""

from ml_collections import ConfigDict

from configs import base, networks

IMAGES = 1024 * 2**20
RAMP_UP = 10_000_000
SNAPSHOT = 8 * 2**20
BATCH = 2048


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', 'xs' and 'smoke'."""
    base.check_variant(__file__, variant, ("", "xs", "smoke"))
    config = base.get_config()
    config.data.update(
        source="tfds(name='imagenet2012', split='train')",
        image_size=64,
        channels=3,
        workers=16,
    )
    config.model = networks.edm2_unet()
    config.model.update(channels=192, num_classes=1000, dtype="bfloat16")
    config.diffusion.update(
        schedule="edm(sigma_min=0.002, sigma_max=80.0, rho=7.0)",
        parameterization="edm(sigma_data=0.5)",
        weighting="edm(sigma_data=0.5)",
        time_sampler="log_normal(mean=-0.8, std=1.6)",
        uncertainty_channels=128,
    )
    config.train.update(steps=IMAGES // BATCH, batch_size=BATCH)
    config.optimizer.update(
        name="adam(b1=0.9, b2=0.99, eps=1e-8)",
        learning_rate=1e-2,
        warmup_steps=RAMP_UP // BATCH,
        decay="inverse_sqrt",
        decay_steps=35_000,
        clip_norm=0.0,
        forced_weight_norm=True,
    )
    config.ema = ConfigDict({"ema05": "power(std=0.05)", "ema10": "power(std=0.10)"})
    config.checkpoint.update(every=SNAPSHOT // BATCH, keep_every=SNAPSHOT // BATCH)
    config.mesh.update(data=1, fsdp=-1)
    # 63 calls of the network, without churn. (EDM's ADM on ImageNet 64 takes 256 steps with
    # s_churn=40, s_min=0.05, s_max=50, s_noise=1.003; the older ADM, s_churn=80.)
    config.sample.update(solver="heun()", grid="uniform", steps=32, clip="none", ema="ema05")
    if variant == "xs":
        config.model.channels = 128
        config.optimizer.learning_rate = 1.2e-2
    if variant == "smoke":
        base.smoke(
            config,
            channels=16,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(16,),
            head_channels=16,
        )
        config.mesh.update(data=-1, fsdp=1)
        config.checkpoint.keep_every = 0
    return config
