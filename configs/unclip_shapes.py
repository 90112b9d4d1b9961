"""unCLIP on scenes of coloured shapes: CLIP, prior, decoder at 16 px, upsampler to 32 px.

    python main.py --config=configs/unclip_shapes.py --workdir=runs/unclip
    python main.py --mode=generate --workdir=runs/unclip \\
        --prompt="a small red circle on a white background"
    python main.py --mode=evaluate --workdir=runs/unclip

`make quickstart` runs these; docs/results/unclip_shapes.md says how long that takes on two CPU
cores and how many of the pictures are what their captions say. The scenes have one object.
`:full` is the same for longer, with larger networks, and to 64 px: an hour and a half.
`:priors` has other priors beside the diffusion one, for the comparison of all (docs/priors.md):

    python -m experiments.priors --config=configs/unclip_shapes.py:priors --workdir=runs/unclip

`:smoke` and `:smoke_priors` train a few steps of each stage.
"""

from ml_collections import ConfigDict

from configs import base, networks, shapes_clip, shapes_sr, stack

# Widths that the stages share.
_EMBEDDING, _CONTEXT, _TEXT = 64, 16, 96
# Of the same examples it learns outlines twice as fast as Adam; a fourth of the step is its own.
_MUON = "muon(adam_b2=0.95, ns_steps=3)"


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '', 'full', 'smoke', and with the other priors 'priors' and 'smoke_priors'."""
    base.check_variant(__file__, variant, ("", "full", "smoke", "priors", "smoke_priors"))
    stages = {"clip": _clip(), "prior": _prior(), "decoder": _decoder(), "upsampler": _upsampler()}
    config = stack.get_config(**stages)
    splits = "test", "compositional"
    config.evaluate.metrics = tuple(
        f"{metric}(split={split!r}, count=256)"
        for metric in ("caption_accuracy", "decoded_quality")
        for split in splits
    )
    if variant == "full":
        _full(config)
    if variant.startswith("smoke"):
        _smoke(config)
    if variant.endswith("priors"):
        _add_priors(config)
    return config


def _stage(source: str = "shapes(size=32, split='train', objects=1)") -> ConfigDict:
    config = base.get_config()
    config.data.update(source=source, image_size=32, channels=3)
    config.optimizer.update(warmup_steps=50, decay="cosine")
    config.ema.default = "constant(decay=0.99)"
    config.checkpoint.update(every=500, keep=1)
    config.log.update(every=50, preview_every=0, preview_count=16)
    return config


def _clip() -> ConfigDict:
    config = shapes_clip.get_config()
    config.data.source = _stage().data.source
    # Reading in a process of its own: 780 examples/s on two cores, 540 without.
    config.data.workers = 1
    # A fourth of its step is attention over 65 tokens, in proportion to the heads.
    config.model.update(patch_size=4, image_width=64, image_depth=2, image_heads=2)
    config.train.update(steps=600, batch_size=128)
    config.optimizer.update(name=_MUON, learning_rate=3e-3)
    config.log.preview_every = 0
    config.embed.update(text_features=True, statistics=2000)
    return config


def _prior() -> ConfigDict:
    config = _stage()
    config.task = "prior(candidates=2)"
    config.model = networks.prior()
    config.model.update(
        embedding_dim=_EMBEDDING,
        context_length=_CONTEXT,
        text_dim=_TEXT,
        width=96,
        depth=2,
        num_heads=4,
    )
    config.diffusion.update(schedule="cosine(timesteps=1000)", parameterization="x0")
    config.train.update(steps=700, batch_size=128)
    config.optimizer.name = "adamw(b1=0.9, b2=0.96, eps=1e-6, weight_decay=6e-2)"
    config.optimizer.learning_rate = 1e-3
    config.sample.update(solver="ddpm(variance='fixed_small')", steps=16, clip="none")
    config.evaluate.metrics = ("prior_quality(split='test', count=1000)",)
    return config


def _decoder() -> ConfigDict:
    config = _stage()
    # The caption is seldom withheld: it tells outlines plainly, where the image embedding does not.
    # Withholding the embedding from half cost 0.07 of the shapes.
    config.task = (
        'decoder(size=16, embedding_dropout=0.1, caption_dropout=0.1, guided_by="caption")'
    )
    # Of few large patches a transformer learns outlines in a third of a U-Net's time.
    config.model = networks.unclip_dit()
    config.model.update(
        patch_size=4,
        hidden_size=128,
        depth=4,
        num_heads=4,
        positions="learned",
        embedding_dim=_EMBEDDING,
        context_length=_CONTEXT,
        text_dim=_TEXT,
    )
    # x0 is learned sooner than eps: backgrounds are flat.
    config.diffusion.update(schedule="cosine(timesteps=1000)", parameterization="x0")
    # Outlines are decided where errors are small, of which equal weights of all levels see little.
    config.diffusion.uncertainty_channels = 64
    config.diffusion.time_sampler = "low_discrepancy"
    config.train.update(steps=2600, batch_size=64)
    config.optimizer.update(name=_MUON, learning_rate=6e-3)
    config.sample.update(solver="ddim(eta=0.0)", steps=20)
    config.sample.guidance = ("classifier_free(scale=1.5)",)
    return config


def _upsampler() -> ConfigDict:
    config = shapes_sr.get_config("quick")
    config.checkpoint.update(every=500, keep=1)
    config.log.update(every=50, preview_every=0)
    return config


def _smoke(config: ConfigDict) -> None:
    """Cuts every stage down to a few steps of a small network."""
    for name in config.order:
        stage = config.stages[name]
        stage.train.update(steps=10, batch_size=8)
        stage.optimizer.warmup_steps = 2
        stage.checkpoint.every = 5
        stage.log.update(every=5, preview_every=10, preview_count=4)
        stage.sample.steps = 4
    clip, prior, decoder, upsampler = (config.stages[name].model for name in config.order)
    clip.update(patch_size=8, image_width=32, image_depth=1, text_width=32, text_depth=1)
    prior.update(text_dim=32, width=32, depth=1)
    decoder.update(hidden_size=32, depth=1, num_heads=2, text_dim=32)
    upsampler.update(channels=16, channel_mult=(1, 2))
    config.stages.clip.embed.statistics = 64
    config.generate.batch_size = 4
    config.evaluate.metrics = ("caption_accuracy(split='test', count=4)",)


def _full(config: ConfigDict) -> None:
    """The same scenes, longer: larger prior and decoder, and a second upsampler, to 64 px."""
    stages = config.stages
    stages.clip.model.image_heads = 4
    stages.clip.train.steps = 2000
    stages.prior.model.update(width=128, depth=3)
    stages.prior.train.steps = 3000
    stages.prior.sample.steps = 64
    stages.decoder.model.update(hidden_size=160, depth=5, num_heads=5)
    stages.decoder.train.update(steps=6000, batch_size=128)
    stages.decoder.optimizer.learning_rate = 2e-3
    stages.upsampler.train.steps = 4000
    stages.upsampler64 = shapes_sr.get_config("quick64")
    stages.upsampler64.train.steps = 3000
    stages.upsampler64.log.every = 50
    for stage in stages.values():
        stage.checkpoint.update(every=1000, keep=1)
    config.order = (*config.order, "upsampler64")
    config.generate.upsamplers = ("upsampler", "upsampler64")


def _add_priors(config: ConfigDict) -> None:
    """Other priors, trained as the diffusion prior is: for as long, on the same pairs."""
    diffusion = config.stages.prior
    kinds = {
        "prior_linear": ("regression_prior", networks.linear_prior()),
        "prior_mlp": ("regression_prior(contrastive=0.2)", networks.mlp_prior()),
        "prior_ar": (
            "autoregressive_prior(quantizer='{root}/prior_ar/quantizer.npz')",
            networks.autoregressive_prior(),
        ),
    }
    for name, (task, model) in kinds.items():
        # What both have, such as width and depth, is the same.
        shared = {k: v for k, v in diffusion.model.items() if k in model and k != "name"}
        model.update(shared)
        stage = diffusion.copy_and_resolve_references()
        stage.task, stage.model = task, model
        if "null_text" not in model:
            stage.sample.guidance = ()
        config.stages[name] = stage
    # Of a trained CLIP these components held 99.7% of the variance.
    config.stages.prior_ar.model.update(components=24, buckets=64)
    config.order = (*config.order, *kinds)
