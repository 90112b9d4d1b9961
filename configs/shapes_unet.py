"""Scenes of coloured shapes at 32 pixels, conditioned on shape and colour of the first object.

    python main.py --config=configs/shapes_unet.py --workdir=runs/shapes

The data is generated on first use. `:smoke` runs on a CPU in about a minute.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '' and 'smoke'."""
    base.check_variant(__file__, variant, ("", "smoke"))
    config = base.get_config()
    config.data.update(source="shapes(size=32, split='train')", image_size=32, channels=3)
    config.model.update(
        channels=64,
        channel_mult=(1, 2, 2),
        num_res_blocks=2,
        attention_resolutions=(8,),
        conditioning="scale_shift",
        num_classes=36,
        null_class=True,
        dropout=0.0,
    )
    config.diffusion.update(schedule="cosine(timesteps=1000)", label_dropout=0.1)
    config.train.update(steps=50_000, batch_size=128)
    config.optimizer.update(learning_rate=4e-4, warmup_steps=500, decay="cosine")
    config.ema.default = "constant(decay=0.999)"
    config.log.update(preview_every=5000, preview_count=36)
    config.sample.update(solver="ddim(eta=0.0)", steps=50, count=144, batch_size=36)
    config.sample.guidance = ("classifier_free(scale=2.0)",)
    if variant == "smoke":
        base.smoke(config)
    return config
