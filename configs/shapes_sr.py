"""Super-resolution of scenes of shapes, from 16 to 32 pixels or from 32 to 64.

    python main.py --config=configs/shapes_sr.py --workdir=runs/shapes_sr
    python main.py --config=configs/shapes_sr.py:64 --workdir=runs/shapes_sr64

A network of convolutions alone, trained on crops of half the side. `:quick` and `:quick64` are
short trainings for a CPU: a small network on patches, which predicts the residual. `:smoke` runs in
about a minute.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '' (16 to 32 pixels), '64' (32 to 64), 'quick', 'quick64' and 'smoke'."""
    base.check_variant(__file__, variant, ("", "64", "quick", "quick64", "smoke"))
    config = base.get_config()
    size = 64 if variant.endswith("64") else 32
    config.task = (
        f"super_resolution(low={size // 2}, degradation='blur', noise=(0.0, 0.3), crop=0.5)"
    )
    config.data.update(source=f"shapes(size={size}, split='train')", image_size=size, channels=3)
    config.model.update(
        channels=32,
        channel_mult=(1, 2, 2),
        num_res_blocks=2,
        attention_resolutions=(),
        middle_attention=False,
        conditioning="scale_shift",
        norm_groups=16,
        dropout=0.0,
    )
    config.diffusion.update(schedule="cosine(timesteps=1000)")
    config.train.update(steps=20_000, batch_size=64)
    config.optimizer.update(learning_rate=4e-4, warmup_steps=200, decay="cosine")
    config.ema.default = "constant(decay=0.999)"
    config.log.update(preview_every=2000, preview_count=16)
    config.sample.update(solver="ddim(eta=0.0)", steps=27, count=64, batch_size=32)
    if variant.startswith("quick"):
        # Noise alone makes it robust; to undo a blur, too, is much to ask of so few steps.
        config.task = (
            f"super_resolution(low={size // 2}, degradation='none', noise=(0.0, 0.15), "
            f"crop={16 / size}, residual=True)"
        )
        # All of it at the resolution of the input, four pixels of the output at once.
        config.model.update(channels=48, channel_mult=(1,), patch_size=2)
        config.model.norm_groups = 8
        config.diffusion.parameterization = "x0"
        config.train.update(steps=1200, batch_size=32)
        config.optimizer.update(learning_rate=2e-3, warmup_steps=30)
        config.ema.default = "constant(decay=0.98)"
        config.log.preview_every = 0
        config.sample.steps = 8
    if variant == "smoke":
        base.smoke(config)
        config.model.update(attention_resolutions=())
    return config
