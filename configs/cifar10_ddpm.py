"""DDPM on CIFAR-10, unconditional (Ho et al. 2020, section 4 and appendix B).

    python main.py --config=configs/cifar10_ddpm.py --workdir=runs/cifar10_ddpm

The paper trains 800,000 steps and reports FID 3.17 (50,000 samples against the training set, the
best over training, 1000 steps, fixed-large variance). The data is TFDS's `cifar10`, prepared
beforehand; a folder of images does as well:

    --config.data.source="folder(path='/data/cifar10', split='train')"

`:smoke` runs on a CPU in about a minute: a small network, and generated shapes for CIFAR-10.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '' and 'smoke'."""
    base.check_variant(__file__, variant, ("", "smoke"))
    config = base.get_config()
    config.data.update(
        source="tfds(name='cifar10', split='train')",
        image_size=32,
        channels=3,
        augmentations=("flip",),
        workers=4,
    )
    if variant == "smoke":
        base.smoke(config)
    return config
