"""Handwritten digits of 8 x 8 pixels, conditioned on their class.

    python main.py --config=configs/digits.py --workdir=runs/digits
    python main.py --mode=sample --workdir=runs/digits
    python main.py --mode=evaluate --workdir=runs/digits

Five minutes on two CPU cores; a classifier fitted on real digits recognises more than 95% of the
samples as the class asked for. `:smoke` trains a handful of steps.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '' and 'smoke'."""
    base.check_variant(__file__, variant, ("", "smoke"))
    config = base.get_config()
    config.data.update(source="digits(split='train')", image_size=8, channels=1)
    config.model.update(
        channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        conditioning="scale_shift",
        num_classes=10,
        null_class=True,
        dropout=0.0,
    )
    config.diffusion.update(schedule="cosine(timesteps=1000)", label_dropout=0.1)
    config.train.update(steps=800, batch_size=128)
    config.optimizer.update(learning_rate=2e-3, warmup_steps=50, decay="cosine")
    config.ema.default = "constant(decay=0.99)"
    config.checkpoint.update(every=200)
    config.log.update(every=50, preview_every=400, preview_count=60)
    config.sample.update(solver="ddim(eta=0.0)", steps=25, count=1000, batch_size=200)
    config.sample.guidance = ("classifier_free(scale=1.5)",)
    config.evaluate.metrics = ("class_accuracy",)
    if variant == "smoke":
        config.train.steps = 20
        config.checkpoint.every = 10
        config.log.update(every=5, preview_every=20, preview_count=10)
        config.sample.update(steps=5, count=20, batch_size=20)
    return config
