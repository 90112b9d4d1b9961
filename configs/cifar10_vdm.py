"""Variational diffusion model on CIFAR-10, for likelihood (Kingma et al. 2021, appendix B).

    python main.py --config=configs/cifar10_vdm.py --workdir=runs/cifar10_vdm

A U-Net without down-sampling, Fourier features of the pixels, a learned noise schedule, the bound
of continuous time as the loss; 10M steps at batch 128. The paper reports 2.65 bits/dim on the test
set. The sum of the three `*_bits` metrics is that bound on the training data.

The authors scale pixels to (v + 1/2) / 128 - 1; here they are v / 127.5 - 1.

`:smoke` runs on a CPU in about a minute: a small network, and generated shapes for CIFAR-10.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '' and 'smoke'."""
    base.check_variant(__file__, variant, ("", "smoke"))
    config = base.get_config()
    config.data.update(
        source="tfds(name='cifar10', split='train')", image_size=32, channels=3, workers=4
    )
    config.model.update(
        channels=128,
        channel_mult=(1,),
        num_res_blocks=32,
        attention_resolutions=(),
        dropout=0.1,
        fourier_features=(7, 8),
    )
    config.diffusion.update(
        schedule="vdm_scalar(gamma_min=-13.3, gamma_max=5.0)",
        parameterization="residual",
        loss="vdm",
        time_sampler="low_discrepancy",
    )
    config.train.update(steps=10_000_000, batch_size=128)
    config.optimizer.update(
        name="adamw(b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.01, no_decay=('bias',))",
        learning_rate=2e-4,
        warmup_steps=100,
        clip_norm=0.0,
    )
    config.sample.update(
        solver="ddpm(variance='fixed_small')", grid="uniform", steps=1000, clip="none"
    )
    if variant == "smoke":
        base.smoke(
            config, channels=32, channel_mult=(1,), num_res_blocks=2, attention_resolutions=()
        )
    return config
