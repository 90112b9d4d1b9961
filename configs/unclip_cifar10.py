"""unCLIP on CIFAR-10, captioned by its classes: CLIP, prior, decoder at 16 px, upsampler to 32 px.

    python main.py --config=configs/unclip_cifar10.py --workdir=runs/unclip_cifar10
    python main.py --mode=generate --workdir=runs/unclip_cifar10 --prompt="a photo of a ship"
    python main.py --mode=evaluate --workdir=runs/unclip_cifar10

The data is TFDS's `cifar10`, prepared beforehand; `:folder` reads images in its place, such as
data/cifar10/train/ship/0001.jpg. It is meant for one GPU, where it was not run yet. `:small` reads
the same images and was trained on two CPU cores (docs/results/unclip_cifar10.md). `:smoke` trains a
few steps of each stage, on generated scenes.

A caption names one of ten classes by one of eight templates, so a batch has many that are the same:
contrastive loss has them for negatives, and cannot fall to zero. The image embedding tells what the
caption does not.
"""

from ml_collections import ConfigDict

from configs import base, networks, stack

TEMPLATES = (
    "a photo of a {}",
    "a small photo of a {}",
    "a blurry photo of a {}",
    "a close-up photo of a {}",
    "a picture of one {}",
    "an image of a {}",
    "this is a {}",
    "a {}",
)
TFDS = f"tfds(name='cifar10', split='train', templates={TEMPLATES!r})"
FOLDER = f"folder(path='data/cifar10', split='train', templates={TEMPLATES!r})"
# Widths that the stages share.
_EMBEDDING, _CONTEXT, _TEXT = 128, 16, 128
# Of the small variant, as in configs/unclip_shapes.py.
_MUON = "muon(adam_b2=0.95, ns_steps=3)"


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', 'folder', 'small' and 'smoke'."""
    base.check_variant(__file__, variant, ("", "folder", "small", "smoke"))
    config = stack.get_config(
        clip=_clip(), prior=_prior(), decoder=_decoder(), upsampler=_upsampler()
    )
    # In the step, since a flipped image has an embedding of its own.
    config.embeddings = "step"
    for stage in config.stages.values():
        stage.data.update(
            source=FOLDER if variant in ("folder", "small") else TFDS,
            image_size=32,
            channels=3,
            augmentations=("flip",),
            workers=4,
        )
    config.evaluate.metrics = (
        f"zero_shot(split='test', count=1000, templates={TEMPLATES!r})",
        "prior_quality(split='test', count=1000)",
        "decoded_quality(split='test', count=1000)",
    )
    if variant == "small":
        _small(config)
    if variant == "smoke":
        _smoke(config)
    return config


def _stage(steps: int, learning_rate: float) -> ConfigDict:
    config = base.get_config()
    config.train.update(steps=steps, batch_size=256)
    config.optimizer.update(learning_rate=learning_rate, warmup_steps=1000, decay="cosine")
    config.ema.default = "constant(decay=0.9995)"
    config.checkpoint.update(every=2000, keep=2)
    config.log.update(every=100, preview_every=10_000)
    return config


def _clip() -> ConfigDict:
    config = _stage(steps=20_000, learning_rate=5e-4)
    config.task = "clip"
    config.data.update(tokenizer="bpe(vocab_size=300)", context=_CONTEXT)
    config.model = networks.clip()
    config.model.update(
        embedding_dim=_EMBEDDING,
        patch_size=4,
        image_width=256,
        image_depth=6,
        image_heads=8,
        vocab_size=300,
        context_length=_CONTEXT,
        text_width=_TEXT,
        text_depth=3,
        text_heads=4,
    )
    config.optimizer.name = (
        "adamw(b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.2, "
        "no_decay=('bias', 'scale', 'log_scale'))"
    )
    config.log.preview_every = 0
    config.embed.statistics = 10_000
    config.evaluate.metrics = (
        f"zero_shot(split='test', templates={TEMPLATES!r})",
        "retrieval(split='test', count=1000)",
    )
    return config


def _prior() -> ConfigDict:
    config = _stage(steps=30_000, learning_rate=5e-4)
    config.task = "prior(candidates=2)"
    config.model = networks.prior()
    config.model.update(
        embedding_dim=_EMBEDDING,
        context_length=_CONTEXT,
        text_dim=_TEXT,
        width=256,
        depth=6,
        num_heads=8,
    )
    config.diffusion.update(schedule="cosine(timesteps=1000)", parameterization="x0")
    config.optimizer.name = "adamw(b1=0.9, b2=0.96, eps=1e-6, weight_decay=6e-2)"
    config.log.preview_every = 0
    config.sample.update(solver="ddpm(variance='fixed_small')", steps=64, clip="none")
    config.evaluate.metrics = ("prior_quality(split='test', count=1000)",)
    return config


def _decoder() -> ConfigDict:
    """The paper's kind of U-Net, losses and rates, small."""
    config = _stage(steps=100_000, learning_rate=2e-4)
    config.task = "decoder(size=16)"
    config.model = networks.unclip_decoder()
    config.model.update(
        channels=128,
        channel_mult=(1, 2, 2),
        num_res_blocks=2,
        attention_resolutions=(16, 8),
        head_channels=32,
        embedding_dim=_EMBEDDING,
        context_length=_CONTEXT,
        text_width=256,
        text_dim=_TEXT,
        text_depth=0,
        vocab_size=0,
        dropout=0.1,
    )
    config.diffusion.update(
        schedule="cosine(timesteps=1000)", loss="hybrid", variance="learned_range"
    )
    config.sample.update(solver="ddpm(variance='learned_range')", steps=100)
    config.sample.guidance = ("classifier_free(scale=1.25)",)
    return config


def _upsampler() -> ConfigDict:
    config = _stage(steps=40_000, learning_rate=2e-4)
    config.task = "super_resolution(low=16, degradation='blur', noise=(0.0, 0.3), crop=0.5)"
    config.model.update(
        channels=96,
        channel_mult=(1, 2, 2),
        num_res_blocks=2,
        attention_resolutions=(),
        middle_attention=False,
        conditioning="scale_shift",
        dropout=0.0,
    )
    config.diffusion.update(schedule="cosine(timesteps=1000)")
    config.sample.update(solver="ddim(eta=0.0)", steps=27)
    return config


def _small(config: ConfigDict) -> None:
    """For two CPU cores: small networks, few steps, by Muon; a DiT draws, as in unclip_shapes."""
    clip, prior, decoder, upsampler = (config.stages[name] for name in config.order)
    # No step computes them, which would cost more than a decoder's; so nothing is flipped.
    config.embeddings = "records"
    clip.embed.text_features = True
    prior.data.augmentations = decoder.data.augmentations = ()
    for stage in config.stages.values():
        stage.data.workers = 1
        stage.optimizer.warmup_steps = 50
        stage.ema.default = "constant(decay=0.995)"
        stage.checkpoint.update(every=500, keep=1)
        stage.log.update(every=50, preview_every=0)
    clip.model.update(image_width=128, image_depth=4, image_heads=4)
    clip.model.update(text_width=64, text_depth=1, text_heads=2)
    clip.train.update(steps=1000, batch_size=128)
    clip.optimizer.update(name=_MUON, learning_rate=2e-3)
    prior.model.update(text_dim=64, width=128, depth=2, num_heads=4)
    prior.train.update(steps=1500, batch_size=128)
    # With four blocks 155 examples/s on a core, where a U-Net of 80 channels on patches has 40.
    decoder.model = networks.unclip_dit()
    decoder.model.update(
        patch_size=2,
        hidden_size=128,
        depth=5,
        num_heads=4,
        positions="learned",
        embedding_dim=_EMBEDDING,
        context_length=_CONTEXT,
        text_dim=64,
    )
    decoder.diffusion.update(loss="simple", variance="fixed", parameterization="v")
    decoder.diffusion.uncertainty_channels = 64
    decoder.diffusion.time_sampler = "low_discrepancy"
    decoder.train.update(steps=5000, batch_size=64)
    decoder.optimizer.update(name=_MUON, learning_rate=4e-3)
    decoder.sample.update(solver="ddim(eta=0.0)", steps=50)
    upsampler.task = (
        "super_resolution(low=16, degradation='none', noise=(0.0, 0.15), crop=0.5, residual=True)"
    )
    # All of it at the resolution of the input, four pixels of the output at once.
    upsampler.model.update(channels=64, channel_mult=(1,), patch_size=2, norm_groups=8)
    upsampler.diffusion.parameterization = "x0"
    upsampler.train.update(steps=4000, batch_size=32)
    upsampler.optimizer.learning_rate = 2e-3
    upsampler.sample.steps = 8


def _smoke(config: ConfigDict) -> None:
    for stage in config.stages.values():
        stage.data.update(source="shapes(size=32, split='train')", workers=0)
        stage.train.update(steps=4, batch_size=8)
        stage.optimizer.warmup_steps = 2
        stage.checkpoint.every = 2
        stage.log.update(every=2, preview_every=0)
        stage.sample.steps = 2
    clip, prior, decoder, upsampler = (config.stages[name] for name in config.order)
    clip.model.update(image_width=32, image_depth=1, image_heads=4)
    clip.model.update(text_width=32, text_depth=1)
    clip.embed.statistics = 64
    prior.model.update(text_dim=32, width=32, depth=1, num_heads=4)
    decoder.model.update(text_dim=32, text_width=32, attention_resolutions=(8,), head_channels=8)
    for stage in (decoder, upsampler):
        stage.model.update(channels=16, channel_mult=(1, 2), num_res_blocks=1, norm_groups=8)
    config.generate.batch_size = 4
    config.evaluate.metrics = (
        "prior_quality(split='test', count=4)",
        "decoded_quality(split='test', count=4)",
    )
