"""DALL-E 2 as a stack of six stages (Ramesh et al. 2022, appendix C and table 3).

    python main.py --mode=inspect --config=configs/unclip_paper.py --workdir=gs://bucket/unclip
    python main.py --config=configs/unclip_paper.py --workdir=gs://bucket/unclip

`--mode=inspect` prints the size of each stage and allocates nothing. `:smoke` trains a few steps of
each on a CPU, its networks and data cut down.

The state of a stage is 16 bytes a parameter: itself, two moments of Adam and one average, float32.
That is 57 GB for the decoder, and 14 GB of gradients beside it; so all stages are split over all
devices (mesh.fsdp = -1).

CLIP learns from two sets in equal shares and all others from the second one alone. Embeddings are
made in the step: records of the features of 256 tokens would take a mebibyte for each caption.
"""

from ml_collections import ConfigDict

from configs import base, networks, prior_paper, stack, upsamplers_paper

# Yours to set. The paper's are 650 million pairs in all, and 250 million.
NOISY = "records(path='/data/noisy', split='train')"
PAIRS = "records(path='/data/pairs', split='train')"


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '' and 'smoke'."""
    base.check_variant(__file__, variant, ("", "smoke"))
    config = stack.get_config(
        clip=_clip(),
        prior=prior_paper.get_config(),
        prior_ar=_autoregressive_prior(),
        decoder=_decoder(),
        upsampler256=_upsampler(""),
        upsampler1024=_upsampler("1024"),
    )
    config.embeddings = "step"
    config.pairs = PAIRS
    for name in ("prior", "prior_ar", "decoder"):
        # They would embed their examples in one process.
        config.stages[name].log.preview_every = 0
    config.generate.update(upsamplers=("upsampler256", "upsampler1024"), batch_size=16)
    config.evaluate.metrics = (
        "prior_quality(split='test', count=10_000)",
        "decoded_quality(split='test', count=10_000)",
    )
    if variant == "smoke":
        _smoke(config)
    return config


def _clip() -> ConfigDict:
    """ViT-H/16 at 256 pixels by sharpness-aware minimization.

    The paper says no more of its training than that the rest is Radford et al.'s: their table 18
    and 32 epochs of 400 million pairs. It perturbs the weights on each device by the gradient of
    its own 64 examples; here by that of the whole batch.
    """
    config = base.get_config()
    config.task = "clip"
    config.data.update(
        source=f"mixture(sources=({NOISY}, {PAIRS}), weights=(1, 1))",
        image_size=256,
        channels=3,
        tokenizer="file(path='/data/tokenizer.json')",
        context=256,
        workers=16,
    )
    config.model = networks.clip()
    config.model.update(
        embedding_dim=1024,
        patch_size=16,
        image_width=1280,
        image_depth=32,
        image_heads=16,
        context_length=256,
        text_width=1024,
        text_depth=24,
        text_heads=16,
        dtype="bfloat16",
        remat=True,
    )
    config.train.update(steps=390_625, batch_size=32_768)
    config.optimizer.update(
        name=(
            "adamw(b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.2, "
            "no_decay=('bias', 'scale', 'log_scale'))"
        ),
        learning_rate=3e-4,
        warmup_steps=2000,
        decay="cosine",
        sam_rho=0.1,
    )
    config.mesh.update(data=1, fsdp=-1)
    return config


def _autoregressive_prior() -> ConfigDict:
    config = prior_paper.get_config("autoregressive")
    config.task = "autoregressive_prior(quantizer='{root}/prior_ar/quantizer.npz')"
    return config


def _decoder() -> ConfigDict:
    """64 pixels, of CLIP's embedding of 256 and the caption.

    The guidance is that of the paper's FID on MS-COCO.
    """
    config = base.get_config()
    config.task = "decoder(size=64)"
    config.data.workers = 16
    config.model = networks.unclip_decoder()
    config.model.update(dropout=0.1, dtype="bfloat16", remat=True)
    config.diffusion.update(
        schedule="cosine(timesteps=1000)", loss="hybrid", variance="learned_range"
    )
    config.train.update(steps=800_000, batch_size=2048)
    config.optimizer.update(
        name="adamw(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)",
        learning_rate=1.2e-4,
        warmup_steps=0,
    )
    config.mesh.update(data=1, fsdp=-1)
    config.sample.update(solver="ddpm(variance='learned_range')", steps=250)
    config.sample.guidance = ("classifier_free(scale=1.25)",)
    return config


def _upsampler(variant: str) -> ConfigDict:
    config = upsamplers_paper.get_config(variant)
    config.data.source = PAIRS
    return config


def _smoke(config: ConfigDict) -> None:
    """16 pixels to 32 to 64, on generated scenes; kinds of networks, losses and samplers stay."""
    config.pairs = "shapes(size=32, split='train')"
    for stage in config.stages.values():
        stage.data.update(source=config.pairs, image_size=32, workers=0)
        stage.model.update(dtype="float32", remat=False)
        stage.train.update(steps=4, batch_size=8)
        stage.optimizer.warmup_steps = 2
        stage.checkpoint.every = 2
        stage.log.update(every=2, preview_every=0)
        stage.mesh.update(data=-1, fsdp=1)
        stage.sample.steps = 2
    clip, prior, autoregressive, decoder, first, second = (
        config.stages[name] for name in config.order
    )
    clip.data.update(tokenizer="bpe(vocab_size=512)", context=16)
    clip.embed.statistics = 64
    clip.model.update(embedding_dim=64, patch_size=8, vocab_size=512, context_length=16)
    clip.model.update(image_width=32, image_depth=1, image_heads=4)
    clip.model.update(text_width=32, text_depth=1, text_heads=4)
    for stage in (prior, autoregressive):
        stage.model.update(embedding_dim=64, context_length=16, text_dim=32)
        stage.model.update(width=32, depth=1, num_heads=4)
    autoregressive.model.update(components=8, buckets=16)
    decoder.task = "decoder(size=16)"
    decoder.model.update(embedding_dim=64, vocab_size=512, context_length=16)
    decoder.model.update(text_width=32, text_depth=1, text_heads=4)
    decoder.model.update(attention_resolutions=(8,), head_channels=8)
    first.task = "super_resolution(low=16, degradation='blur', crop=0.5)"
    second.task = "super_resolution(low=32, degradation='bsr', crop=0.5)"
    second.data.update(source="shapes(size=64, split='train')", image_size=64)
    for stage in (decoder, first, second):
        stage.model.update(channels=16, channel_mult=(1, 2), num_res_blocks=1, norm_groups=8)
    config.generate.batch_size = 4
    config.evaluate.metrics = (
        "prior_quality(split='test', count=4)",
        "decoded_quality(split='test', count=4)",
    )
