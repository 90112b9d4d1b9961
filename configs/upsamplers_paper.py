"""The two upsamplers of DALL-E 2 (Ramesh et al., 2022, table 3): 64 to 256 and 256 to 1024 pixels.

    python main.py --config=configs/upsamplers_paper.py --workdir=runs/upsampler256
    python main.py --config=configs/upsamplers_paper.py:1024 --workdir=runs/upsampler1024

Unconditional ADM networks without attention, 700M and 300M parameters. `data.source` is yours to
set. The paper does not say which noise conditioning it used beside the degradations; here there is
none. `:smoke` runs a small network on a CPU.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '' (64 to 256), '1024' (256 to 1024) and 'smoke'."""
    base.check_variant(__file__, variant, ("", "1024", "smoke"))
    config = base.get_config()
    second = variant == "1024"
    size, low = (1024, 256) if second else (256, 64)
    kind = "bsr" if second else "blur"
    config.task = (
        f"super_resolution(low={low}, degradation={kind!r}, blur=0.5, noise=(0.0, 0.0), crop=0.25)"
    )
    config.data.update(
        source="folder(path='data/images', split='train')", image_size=size, channels=3, workers=16
    )
    config.model.update(
        channels=192 if second else 320,
        channel_mult=(1, 1, 2, 2, 4, 4) if second else (1, 2, 3, 4),
        num_res_blocks=2 if second else 3,
        attention_resolutions=(),
        middle_attention=False,
        dropout=0.0 if second else 0.1,
        conditioning="scale_shift" if second else "add",
        resample="resblock",
        time_embedding="adm",
        norm_eps=1e-5,
        init="torch",
        dtype="bfloat16",
        remat=True,
    )
    config.diffusion.schedule = "linear(timesteps=1000)" if second else "cosine(timesteps=1000)"
    config.train.update(steps=1_000_000, batch_size=512 if second else 1024)
    config.optimizer.update(
        name="adamw(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)",
        learning_rate=1e-4 if second else 1.2e-4,
        warmup_steps=0,
    )
    config.mesh.update(data=1, fsdp=-1)
    config.sample.update(solver="ddim(eta=0.0)", steps=15 if second else 27)
    if variant == "smoke":
        base.smoke(config)
        config.task = "super_resolution(low=8, degradation='bsr', noise=(0.0, 0.0), crop=0.5)"
        config.model.update(attention_resolutions=(), remat=False)
        config.mesh.update(data=-1, fsdp=1)
    return config
