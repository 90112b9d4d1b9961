"""unCLIP on scenes of coloured shapes: CLIP, prior, decoder at 16 px, upsampler to 32 px.

    python main.py --config=configs/unclip_shapes.py --workdir=runs/unclip
    python main.py --mode=generate --workdir=runs/unclip \\
        --prompt="a small red circle on a white background"
    python main.py --mode=evaluate --workdir=runs/unclip

`:priors` has other priors beside the diffusion one, for the comparison of all (docs/priors.md):

    python -m experiments.priors --config=configs/unclip_shapes.py:priors --workdir=runs/unclip

`:smoke` and `:smoke_priors` train a few steps of each stage.
"""

from ml_collections import ConfigDict

from configs import base, networks, shapes_clip, shapes_sr, stack


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '' and 'smoke', each also with the other priors: 'priors' and 'smoke_priors'."""
    base.check_variant(__file__, variant, ("", "smoke", "priors", "smoke_priors"))
    smoke = variant.startswith("smoke")
    config = stack.get_config(
        clip=_clip(smoke),
        prior=_prior(smoke),
        decoder=_decoder(smoke),
        upsampler=_upsampler(smoke),
    )
    config.evaluate.metrics = (
        "caption_accuracy(split='test', count=256)",
        "caption_accuracy(split='compositional', count=256)",
        "decoded_quality(split='test', count=256)",
    )
    if smoke:
        config.generate.batch_size = 4
        config.evaluate.metrics = ("caption_accuracy(split='test', count=4)",)
    if variant.endswith("priors"):
        _add_priors(config)
    return config


def _clip(smoke: bool) -> ConfigDict:
    config = shapes_clip.get_config("smoke" if smoke else "")
    config.embed.text_features = True
    return config


def _shorten(config: ConfigDict, smoke: bool) -> ConfigDict:
    """Fields that all stages of embeddings share."""
    config.optimizer.update(warmup_steps=50, decay="cosine")
    config.checkpoint.every = 500
    config.log.update(every=50, preview_every=1000, preview_count=16)
    if smoke:
        config.train.update(steps=10, batch_size=8)
        config.optimizer.warmup_steps = 2
        config.checkpoint.every = 5
        config.log.update(every=5, preview_every=10, preview_count=4)
        config.sample.steps = 4
    return config


def _prior(smoke: bool) -> ConfigDict:
    config = base.get_config()
    config.task = "prior(candidates=2)"
    config.model = networks.prior()
    width = 32 if smoke else 96
    config.model.update(
        embedding_dim=64, context_length=16, text_dim=width, width=width, depth=2, num_heads=4
    )
    config.diffusion.update(schedule="cosine(timesteps=1000)", parameterization="x0")
    config.train.update(steps=1000, batch_size=128)
    config.optimizer.update(
        name="adamw(b1=0.9, b2=0.96, eps=1e-6, weight_decay=6e-2)", learning_rate=1e-3
    )
    config.ema.default = "constant(decay=0.99)"
    config.sample.update(solver="ddpm(variance='fixed_small')", steps=16, clip="none")
    config.evaluate.metrics = ("prior_quality(split='test', count=1000)",)
    return _shorten(config, smoke)


def _decoder(smoke: bool) -> ConfigDict:
    config = base.get_config()
    config.task = "decoder(size=16)"
    config.model = networks.unclip_decoder()
    config.model.update(
        channels=16 if smoke else 32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(8,),
        head_channels=0,
        num_heads=2,
        norm_groups=8,
        resample="conv",
        dropout=0.0,
        embedding_dim=64,
        context_length=16,
        vocab_size=512,
        text_width=64,
        text_depth=1,
        text_heads=4,
    )
    config.diffusion.update(schedule="cosine(timesteps=1000)", parameterization="v")
    config.train.update(steps=1000, batch_size=64)
    config.optimizer.learning_rate = 2e-3
    config.ema.default = "constant(decay=0.99)"
    config.sample.update(solver="ddim(eta=0.0)", steps=20)
    config.sample.guidance = ("classifier_free(scale=2.0)",)
    return _shorten(config, smoke)


def _upsampler(smoke: bool) -> ConfigDict:
    return shapes_sr.get_config("smoke" if smoke else "")


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
