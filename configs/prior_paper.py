"""Priors of unCLIP: from a caption to a CLIP image embedding (Ramesh et al. 2022, section 2.2).

    python main.py --config=configs/prior_paper.py --workdir=gs://bucket/prior \\
        --config.data.source="records(path='/data/embeddings')"
    python main.py --mode=estimate --workdir=gs://bucket/prior
    python main.py --mode=evaluate --workdir=gs://bucket/prior

The settings are those of the paper's table 3 (appendix C): width 2048, 24 blocks, 32 heads, cosine
noise, x0 predicted, batch 4096; `:autoregressive` is its other prior, 319 components of 1024
buckets; `:karlo` has the network of Karlo (20 blocks, 77 tokens, CLIP ViT-L/14); `:mlp` and
`:linear` are baselines without noise. The paper does not tell the warm-up, nor what encodes the
text; here its tokens are the features of CLIP's text tower.

The data are records of float32 arrays that a CLIP made beforehand: image_embedding [1024],
text_embedding [1024], text_features [256, 1024], text_mask [256], as --mode=embed writes them; or
images and captions, and the task's argument clip='<its work directory>' (docs/clip.md).

`:smoke` and `:autoregressive_smoke` run on a CPU in about a minute, on generated pairs.
"""

from ml_collections import ConfigDict

from configs import base, networks

VARIANTS = ("", "autoregressive", "karlo", "mlp", "linear", "smoke", "autoregressive_smoke")


def get_config(variant: str = "") -> ConfigDict:
    """Variants: those of `VARIANTS`."""
    base.check_variant(__file__, variant, VARIANTS)
    config = base.get_config()
    config.data.update(source="records(path='/data/embeddings', split='train')", workers=16)
    config.train.update(steps=600_000, batch_size=4096)
    config.optimizer.update(
        name="adamw(b1=0.9, b2=0.96, eps=1e-6, weight_decay=6e-2)",
        learning_rate=1.1e-4,
        warmup_steps=1000,
    )
    config.mesh.update(data=1, fsdp=-1)
    config.log.preview_count = 32
    # The paper's variance is analytic-DPM's: after --mode=estimate, solver =
    # "ddpm(variance='analytic', estimates='<workdir>/analytic.json')".
    config.sample.update(solver="ddpm(variance='fixed_small')", steps=64, clip="none")
    config.evaluate.metrics = ("prior_quality(split='test', count=10_000)",)
    if variant.startswith("autoregressive"):
        _autoregressive(config)
    elif variant in ("mlp", "linear"):
        config.task = (
            "regression_prior(contrastive=0.2)" if variant == "mlp" else "regression_prior"
        )
        config.model = networks.mlp_prior() if variant == "mlp" else networks.linear_prior()
    else:
        config.task = "prior(scale=17.2, candidates=2)"
        config.model = networks.prior()
        config.model.update(dtype="bfloat16", remat=True)
        config.diffusion.update(schedule="cosine(timesteps=1000)", parameterization="x0")
    if variant == "karlo":
        config.model.update(embedding_dim=768, text_dim=768, context_length=77, depth=20)
    if variant.endswith("smoke"):
        _smoke(config)
    return config


def _autoregressive(config: ConfigDict) -> None:
    config.task = "autoregressive_prior(quantizer='/data/quantizer.npz')"
    config.model = networks.autoregressive_prior()
    config.model.update(dtype="bfloat16", remat=True)
    config.train.steps = 1_000_000
    config.optimizer.update(
        name="adamw(b1=0.9, b2=0.91, eps=1e-10, weight_decay=4e-2)", learning_rate=1.6e-4
    )
    config.ema.default = "constant(decay=0.999)"


def _smoke(config: ConfigDict) -> None:
    config.data.update(source="gaussian_pairs(dim=8, context_length=4)", workers=0)
    config.model.update(embedding_dim=8, text_dim=8, context_length=4, width=32, depth=2)
    config.model.update(num_heads=4, dtype="float32", remat=False)
    if config.model.name == "autoregressive_prior":
        config.model.update(components=6, buckets=32)
        config.task = "autoregressive_prior(fit_count=1000)"
    config.mesh.update(data=-1, fsdp=1)
    config.train.update(steps=20, batch_size=16)
    config.optimizer.warmup_steps = 5
    config.checkpoint.every = 10
    config.log.update(every=5, preview_every=20, preview_count=8)
    config.sample.steps = 5
    config.evaluate.metrics = ("prior_quality(split='test', count=64)",)
