r"""A classifier of noisy handwritten digits, which guides `digits.py`.

    python main.py --config=configs/digits_classifier.py --workdir=runs/cls
    python main.py --mode=sample --workdir=runs/digits \
      --config.sample.guidance="classifier_free(scale=0.0),classifier(scale=1.0,workdir='runs/cls')"

The second line samples without labels (scale 0) and leaves the class to the classifier's gradient.
Half a minute of training on two CPU cores; two of three noisy digits are told right, over all noise
levels. `:smoke` trains a handful of steps.
"""

from ml_collections import ConfigDict

from configs import base, digits, networks


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '' and 'smoke'."""
    base.check_variant(__file__, variant, ("", "smoke"))
    config = digits.get_config(variant)
    config.task = "classifier"
    config.model = networks.unet_encoder()
    config.model.update(
        channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        head_channels=32,
        dropout=0.1,
        num_classes=10,
    )
    config.diffusion.label_dropout = 0.0
    config.optimizer.name = "adamw(weight_decay=0.05)"
    config.sample.guidance = ()
    config.evaluate.metrics = ()
    return config
