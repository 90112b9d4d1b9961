"""Fields of `config.model` for each network, their meaning and their defaults."""

from ml_collections import ConfigDict


def unet() -> ConfigDict:
    """Fields of the U-Net (`models.unet.UNetConfig`); the defaults are DDPM's for CIFAR-10."""
    return ConfigDict(
        {
            "name": "unet",
            # Width of the first level, and the factor of it at each level, finest first.
            "channels": 128,
            "channel_mult": (1, 2, 2, 2),
            # Residual blocks at each level of the encoder; the decoder has one more.
            "num_res_blocks": 2,
            # Feature resolutions in pixels that get self-attention.
            "attention_resolutions": (16,),
            # Self-attention in the middle. False and attention_resolutions (): a network of
            # convolutions alone, which takes images of any size.
            "middle_attention": True,
            # The network sees squares of this many pixels a side as one pixel with more channels
            # (space to depth), and predicts such squares. Resolutions are counted in them.
            "patch_size": 1,
            # Heads: a fixed number, or (when head_channels > 0) channels // head_channels.
            "num_heads": 1,
            "head_channels": 0,
            "dropout": 0.1,
            # How time and label enter a block: 'add' (DDPM) or 'scale_shift' (ADM).
            "conditioning": "add",
            # Changing resolution: 'conv' (a strided convolution; nearest + convolution),
            # 'conv_symmetric' (the same, padded on every side: iDDPM) or 'resblock' (BigGAN: inside
            # a residual block, on both branches).
            "resample": "conv",
            # Sinusoids of time: 'ddpm' (sin, cos; over half - 1) or 'adm' (cos, sin; over half).
            "time_embedding": "ddpm",
            "norm_groups": 32,
            "norm_eps": 1e-6,
            # Initialization: 'ddpm' (variance scaling, fan_avg) or 'torch' (PyTorch's defaults).
            "init": "ddpm",
            # Classes the network is conditioned on; 0: unconditional. With null_class, one more
            # row of the table stands for "no label" (classifier-free guidance).
            "num_classes": 0,
            "null_class": False,
            # Tokens that the attention layers read, such as an encoded text, of width context_dim:
            # 'none'; 'kv' (keys and values beside those of the image: GLIDE, DALL-E 2); 'cross'
            # (transformer blocks with cross-attention: latent diffusion). Published weights have
            # them; what is trained with tokens is `unclip_decoder`.
            "context": "none",
            "context_dim": 0,
            # With 'cross': blocks of each attention. One number, or one a level, finest first.
            "transformer_depth": (1,),
            # Width of a vector that is added to the embedding of time; 0: none. As with context.
            "embedding_dim": 0,
            # The network sees sin and cos of 2^n pi x too, for each n here. VDM has (7, 8).
            "fourier_features": (),
            # Attention kernel: 'xla', or 'cudnn' for flash attention on NVIDIA GPUs.
            "attention": "xla",
            # Recompute each block's activations in the backward pass: less memory, more time.
            "remat": False,
            # Type of the computation ('float32' or 'bfloat16'); parameters stay float32.
            "dtype": "float32",
        }
    )


def song_unet() -> ConfigDict:
    """Fields of DDPM++ and NCSN++ (`models.song_unet.SongUNetConfig`).

    The defaults are EDM's DDPM++ for CIFAR-10; with the fields of `NCSNPP` it is NCSN++.
    """
    return ConfigDict(
        {
            "name": "song_unet",
            # Width of the first convolution, and the factor of it at each level, finest first.
            "channels": 128,
            "channel_mult": (2, 2, 2),
            # Residual blocks at each level of the encoder; the decoder has one more.
            "num_res_blocks": 4,
            # Feature resolutions in pixels whose encoder blocks, and last decoder block, attend.
            "attention_resolutions": (16,),
            "dropout": 0.13,
            # 'positional' (sinusoids of `channels`) or 'fourier' (random frequencies of scale 16,
            # twice as many).
            "time_embedding": "positional",
            # 'residual' adds a pyramid of the input to each level of the encoder.
            "encoder": "standard",
            # Low-pass filter of up- and downsampling: (1, 1) or (1, 3, 3, 1).
            "resample_filter": (1, 1),
            **_edm_conditions(),
            **_computation(),
        }
    )


NCSNPP = {
    "time_embedding": "fourier",
    "encoder": "residual",
    "resample_filter": (1, 3, 3, 1),
}


def dhariwal_unet() -> ConfigDict:
    """Fields of EDM's ADM (`models.dhariwal_unet.DhariwalUNetConfig`), as for ImageNet-64."""
    return ConfigDict(
        {
            "name": "dhariwal_unet",
            # As in `song_unet`, but every decoder block of an attention resolution attends.
            "channels": 192,
            "channel_mult": (1, 2, 3, 4),
            "num_res_blocks": 3,
            "attention_resolutions": (32, 16, 8),
            # Channels of an attention head.
            "head_channels": 64,
            "dropout": 0.1,
            **_edm_conditions(),
            **_computation(),
        }
    )


def edm2_unet() -> ConfigDict:
    """Fields of EDM2's U-Net (`models.edm2_unet.EDM2UNetConfig`); the defaults are EDM2-S.

    The paper's sizes differ in `channels` and `dropout` only: XXS 64, XS 128, S 192 without
    dropout; M 256, L 320, XL 384, XXL 448 with 0.1. Its images are 3 x 64 x 64 (ImageNet-64) or
    latents of 4 x 64 x 64 (ImageNet-512). It goes with the parameterization 'edm' and with an
    optimizer that normalizes the weights after each step.
    """
    return ConfigDict(
        {
            "name": "edm2_unet",
            # Width of the first level, and the factor of it at each level, finest first.
            "channels": 192,
            "channel_mult": (1, 2, 3, 4),
            # Blocks at each level of the encoder; the decoder has one more.
            "num_res_blocks": 3,
            # Feature resolutions in pixels that get self-attention.
            "attention_resolutions": (16, 8),
            "head_channels": 64,
            # Shares in sums and concatenations, from 0 (all of the first) to 1 (all of the
            # second): noise level and label, main path and skip, shortcut and residual branch,
            # main path and attention.
            "label_balance": 0.5,
            "concat_balance": 0.5,
            "res_balance": 0.3,
            "attn_balance": 0.3,
            # Activations are clipped to [-clip_act, clip_act] after each block.
            "clip_act": 256.0,
            "dropout": 0.0,
            # Classes the network is conditioned on; 0: unconditional. With null_class, the label
            # num_classes means "no label": a vector of zeros.
            "num_classes": 1000,
            "null_class": False,
            **_computation(),
        }
    )


def dit() -> ConfigDict:
    """Fields of DiT (`models.dit.DiTConfig`); the defaults are DiT-XL/2 for 4 x 32 x 32 latents.

    The paper's sizes, each with patch_size 2, 4 or 8:

        size  hidden_size  depth  num_heads
        S             384     12          6
        B             768     12         12
        L            1024     24         16
        XL           1152     28         16
    """
    return ConfigDict(
        {
            "name": "dit",
            # Side in pixels of the squares that become tokens.
            "patch_size": 2,
            # Channels of a token, number of blocks, attention heads.
            "hidden_size": 1152,
            "depth": 28,
            "num_heads": 16,
            # Width of the MLP's hidden layer over hidden_size.
            "mlp_ratio": 4.0,
            # Where a patch lies: 'sincos' as in the paper, or 'learned', from numbers of size 1. Of
            # few patches the sines hardly differ.
            "positions": "sincos",
            # Classes the network is conditioned on; 0: unconditional. With null_class, one more
            # row of the table stands for "no label" (classifier-free guidance).
            "num_classes": 1000,
            "null_class": True,
            # Numbers of a vector that goes where time goes; 0: there is none. What is trained with
            # one is `unclip_dit`.
            "embedding_dim": 0,
            **_computation(),
        }
    )


def unet_encoder() -> ConfigDict:
    """Fields of the classifier of noisy images (`models.unet_encoder.UNetEncoderConfig`).

    The defaults are ADM's for ImageNet 64; there and at 128, 256 and 512 pixels it has the
    `channel_mult` of the diffusion model.
    """
    fields = unet()
    for name in ("null_class", "context", "context_dim", "transformer_depth", "embedding_dim"):
        del fields[name]
    fields.update(
        name="unet_encoder",
        channels=128,
        channel_mult=(1, 2, 3, 4),
        num_res_blocks=4,
        attention_resolutions=(32, 16, 8),
        head_channels=64,
        dropout=0.0,
        conditioning="scale_shift",
        resample="resblock",
        time_embedding="adm",
        norm_eps=1e-5,
        init="torch",
        num_classes=1000,
    )
    # The last feature map becomes one vector by 'attention' (a mean token asks all positions) or
    # 'mean'.
    fields.pool = "attention"
    return fields


def unclip_decoder() -> ConfigDict:
    """Fields of the decoder of unCLIP (`models.unclip_decoder.UnCLIPDecoderConfig`).

    The defaults are DALL-E 2's; docs/unclip.md has Karlo's.
    """
    fields = unet()
    for name in ("num_classes", "null_class", "context_dim"):
        del fields[name]
    fields.update(
        name="unclip_decoder",
        channels=512,
        channel_mult=(1, 2, 3, 4),
        num_res_blocks=3,
        attention_resolutions=(32, 16, 8),
        head_channels=64,
        conditioning="scale_shift",
        resample="resblock",
        time_embedding="adm",
        norm_eps=1e-5,
        init="torch",
        # How attention reads the tokens of image and caption: 'kv' or 'cross', as in `unet`.
        context="kv",
        # Numbers of a CLIP image embedding, which is also that of a text embedding.
        embedding_dim=1024,
    )
    # Embeddings of length 1 are multiplied by this; 0.0: by the root of embedding_dim, so that
    # their coordinates are of size 1.
    fields.embedding_scale = 0.0
    # Tokens of context that the image embedding becomes, and width of each token of context.
    fields.image_tokens = 4
    fields.text_width = 2048
    # What stands for a withheld image embedding: learned numbers, or zeros.
    fields.learned_null = False
    # Tokens of a caption; 0: there is no caption, and the fields below are not looked at.
    fields.context_length = 256
    # The decoder's own transformer over token ids: their number, its blocks and heads.
    fields.vocab_size = 49408
    fields.text_depth = 24
    fields.text_heads = 32
    # Or, above 0: features of that width of each token, and text embeddings, come from a frozen
    # CLIP and are projected; text_depth is 0 then, and vocab_size may be.
    fields.text_dim = 0
    return fields


def unclip_dit() -> ConfigDict:
    """Fields of a decoder of unCLIP by a DiT (`models.unclip_dit.UnCLIPDiTConfig`).

    A smaller image than DiT's latents, in patches of 2; it is told a caption by a frozen CLIP.
    """
    fields = dit()
    for name in ("num_classes", "null_class"):
        del fields[name]
    decoder = unclip_decoder()
    shared = ("embedding_dim", "embedding_scale", "learned_null", "context_length")
    fields.update(name="unclip_dit", **{name: decoder[name] for name in shared})
    # Width of the features of each token, which a frozen CLIP gives.
    fields.text_dim = 1024
    return fields


def clip() -> ConfigDict:
    """Fields of CLIP (`models.clip.CLIPConfig`); the defaults are OpenAI's ViT-L/14 at 224 pixels.

    size   patch  embedding  image width, depth, heads  text width, depth, heads
    B/32      32        512              768, 12, 12               512, 12, 8
    B/16      16        512              768, 12, 12               512, 12, 8
    L/14      14        768             1024, 24, 16               768, 12, 12
    """
    return ConfigDict(
        {
            "name": "clip",
            # Width of the space that images and texts share.
            "embedding_dim": 768,
            # Side in pixels of the squares that become tokens.
            "patch_size": 14,
            # Channels of a token, number of blocks, attention heads, and the width of the MLP's
            # hidden layer over that of a token.
            "image_width": 1024,
            "image_depth": 24,
            "image_heads": 16,
            "image_mlp_ratio": 4.0,
            # Rows of the table of tokens: the tokenizer's size, or more.
            "vocab_size": 49408,
            # Tokens of a text, start and end included; the same as data.context.
            "context_length": 77,
            "text_width": 768,
            "text_depth": 12,
            "text_heads": 12,
            "text_mlp_ratio": 4.0,
            # 'quick_gelu' (OpenAI) or 'gelu' (most of OpenCLIP).
            "activation": "quick_gelu",
            # The id of the end token, at whose first place the text is read; -1: at the largest id,
            # which is that of the end token in the vocabularies of CLIP and of 'bpe'.
            "end_token": -1,
            # SigLIP's bias of the logits, for the task clip(loss='sigmoid').
            "logit_bias": False,
            **_computation(),
        }
    )


def _edm_conditions() -> dict:
    return {
        # Classes the network is conditioned on; 0: unconditional. With null_class, the label
        # num_classes stands for "no label", which is a vector of zeros and no row of the table.
        "num_classes": 0,
        "null_class": False,
        # Numbers that tell the network how an image was augmented: 9 for `edm` of
        # `input_pipeline.DEVICE_AUGMENTATIONS`, as in EDM's training; 0: it is not told.
        "augment_dim": 0,
    }


def _computation() -> dict:
    return {
        # Attention kernel: 'xla', or 'cudnn' for flash attention on NVIDIA GPUs.
        "attention": "xla",
        # Recompute each block's activations in the backward pass: less memory, more time.
        "remat": False,
        # Type of the computation ('float32' or 'bfloat16'); parameters stay float32.
        "dtype": "float32",
    }


def prior() -> ConfigDict:
    """Fields of the diffusion prior (`models.prior.PriorConfig`); the defaults are DALL-E 2's.

    Karlo's has embedding_dim and text_dim 768, context_length 77, depth 20, null_text False;
    Kandinsky 2.2's the same with 1280.
    """
    return ConfigDict({"name": "prior", **_caption(), **_blocks()})


def autoregressive_prior() -> ConfigDict:
    """Fields of `models.autoregressive_prior.AutoregressivePriorConfig`, by default DALL-E 2's."""
    return ConfigDict(
        {
            "name": "autoregressive_prior",
            **_caption(),
            # Principal components of the image embedding that are kept, and values of each.
            "components": 319,
            "buckets": 1024,
            **_blocks(),
        }
    )


def linear_prior() -> ConfigDict:
    """Fields of the linear map of embeddings (`models.baseline_priors.LinearPriorConfig`)."""
    return ConfigDict({"name": "linear_prior", "embedding_dim": 1024, "dtype": "float32"})


def mlp_prior() -> ConfigDict:
    """Fields of the residual MLP of embeddings (`models.baseline_priors.MLPPriorConfig`)."""
    return ConfigDict(
        {
            "name": "mlp_prior",
            "embedding_dim": 1024,
            # Width between the blocks, and number of blocks.
            "width": 2048,
            "depth": 4,
            "dtype": "float32",
        }
    )


def _caption() -> dict:
    return {
        # Numbers of an image embedding, which is also that of a text embedding.
        "embedding_dim": 1024,
        # Tokens of a caption, and numbers of the features of each.
        "context_length": 256,
        "text_dim": 1024,
        # Learned arrays in place of a withheld caption, for classifier-free guidance.
        "null_text": True,
    }


def _blocks() -> dict:
    return {
        # Channels of a token, number of blocks, attention heads.
        "width": 2048,
        "depth": 24,
        "num_heads": 32,
        # Recompute each block's activations in the backward pass: less memory, more time.
        "remat": False,
        # Type of the computation ('float32' or 'bfloat16'); parameters stay float32.
        "dtype": "float32",
    }


# By `config.model.name`.
FIELDS = {
    "unet": unet,
    "song_unet": song_unet,
    "dhariwal_unet": dhariwal_unet,
    "edm2_unet": edm2_unet,
    "dit": dit,
    "unet_encoder": unet_encoder,
    "unclip_decoder": unclip_decoder,
    "unclip_dit": unclip_dit,
    "clip": clip,
    "prior": prior,
    "autoregressive_prior": autoregressive_prior,
    "linear_prior": linear_prior,
    "mlp_prior": mlp_prior,
}
