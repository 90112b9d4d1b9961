"""Embeddings of images and captions by a published CLIP, or by one that was trained here."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from evaluation import weights
from evaluation.extractors.base import Extractor, choose, exact
from evaluation.resize import RESIZES, antialiased, rgb, square
from input_pipeline import tokenizer as tokenizers
from input_pipeline.tokenizer import Tokenizer
from models.clip import CLIPConfig, make_clip
from models.functional import Params
from models.pretrained.clip import clip_from_openai, clip_from_transformers
from training import contract, encoder
from training.components import ConfigError

# Weights, and what they are of.
MODELS = {
    "vitl14": CLIPConfig(3, 768, 224),
    "vitl14_336": CLIPConfig(3, 768, 336),
}
_MEAN = np.float32([0.48145466, 0.4578275, 0.40821073])
_STD = np.float32([0.26862954, 0.26130258, 0.27577711])
_RESIZES = {name: RESIZES[name] for name in ("pil", "antialiased")}


@dataclasses.dataclass(frozen=True, eq=False)
class CLIPExtractor(Extractor):
    """Of images, and with the same parameters of captions: see `CaptionEncoder`.

    Attributes:
        embed_tokens: (params, int32 [batch context]) -> float32 [batch length].
        context: tokens of a caption.
        tokenizer: of the run; None of a published CLIP, whose file is to be named.
    """

    embed_tokens: Callable[[Any, Any], Any]
    context: int
    tokenizer: Tokenizer | None


def clip(
    model: str = "vitl14_336", resize: str = "pil", path: str = "", directory: str = ""
) -> CLIPExtractor:
    """Output 'embedding': projected, not normalized to length 1.

    Args:
        model: 'vitl14_336' (CMMD) or 'vitl14' (CLIP score), of OpenAI.
        resize: of the middle square to the model's pixels by a bicubic filter: 'pil' on 8 bits, as
            CMMD's program and CLIP's own; 'antialiased' on floats.
        path: file of the weights, in the layout of transformers, OpenAI or OpenCLIP; by default
            `evaluation.weights` looks for it.
        directory: where published weights lie.
    """
    config = choose("clip", "model", model, MODELS)
    resized = choose("clip", "resize", resize, _RESIZES)
    file = weights.locate(f"clip_{model}", path, directory)
    network = make_clip(config)

    def apply(params, images):
        x = resized(square(rgb(images)), config.image_size) / 255
        return {"embedding": network.apply(params, (x - _MEAN) / _STD).image_embedding}

    return CLIPExtractor(
        name=f"clip-{model}-{resize}",
        outputs={"embedding": config.embedding_dim},
        identity={
            "extractor": "clip",
            "model": model,
            "weights": weights.sha256(file),
            "resize": resize,
            "precision": "highest",
        },
        params=weights.read(file, lambda tensors: _params(tensors, config)),
        apply=exact(apply),
        embed_tokens=exact(lambda params, ids: network.apply(params, tokens=ids).text_embedding),
        context=config.context_length,
        tokenizer=None,
    )


def clip_run(workdir: str, ema: str = "", checkpoint: int = -1) -> CLIPExtractor:
    """Output 'embedding' of a CLIP that was trained here; its numbers are of this CLIP alone.

    Images of other sides are resized to the run's by an antialiased bicubic filter.

    Args:
        workdir: of a run of task 'clip'.
        ema: which parameters, as in `config.sample.ema`; '': those that its config names.
        checkpoint: step; -1: the newest.
    """
    run = encoder.load(workdir, ema, checkpoint)
    data, network = run.config.data, run.task.network

    def apply(params, images):
        x = scaled(images, data.image_size, data.channels)
        return {"embedding": network.apply(params, x).image_embedding}

    return CLIPExtractor(
        name="clip_run",
        outputs={"embedding": run.config.model.embedding_dim},
        identity={
            "extractor": "clip_run",
            "checkpoint": run.step,
            "ema": ema or run.config.sample.ema,
            "weights": contract.identify(run.config.model.to_dict(), run.params),
            "dtype": run.config.model.dtype,
            "precision": "highest",
        },
        params=run.params,
        apply=exact(apply),
        embed_tokens=exact(lambda params, ids: network.apply(params, tokens=ids).text_embedding),
        context=run.config.model.context_length,
        tokenizer=run.tokenizer,
    )


class CaptionEncoder:
    """Embeddings of captions, in the space of those of images by the same extractor.

    Args:
        extractor: of `clip` or `clip_run`.
        tokenizer: path of the tokenizer of a published CLIP: tokenizer.json, or a directory with
            vocab.json and merges.txt. A run has its own.
        batch_size: captions that are computed at a time.

    Raises:
        ConfigError: the extractor has no captions, or no tokenizer is named or there.
    """

    def __init__(self, extractor: Extractor, tokenizer: str = "", batch_size: int = 256):
        if not isinstance(extractor, CLIPExtractor):
            raise ConfigError(f"extractor {extractor.name}: embeds no captions; take a CLIP")
        self.extractor, self.batch_size = extractor, batch_size
        self.tokenizer = extractor.tokenizer or self._read(tokenizer)
        self._apply = jax.jit(extractor.embed_tokens)

    def __call__(self, captions: Sequence[str]) -> Float[np.ndarray, "count embedding"]:
        """Float32, not normalized to length 1."""
        ids = self.tokenizer(captions)
        parts = [np.zeros((0, self.extractor.outputs["embedding"]), np.float32)]
        for first in range(0, len(ids), self.batch_size):
            some = ids[first : first + self.batch_size]
            padded = np.pad(some, ((0, self.batch_size - len(some)), (0, 0)))
            parts.append(np.asarray(self._apply(self.extractor.params, padded))[: len(some)])
        return np.concatenate(parts)

    def _read(self, path: str) -> Tokenizer:
        name = self.extractor.name
        if not path:
            raise ConfigError(
                f"tokenizer='': {name} needs the path of its tokenizer.json, or of a directory "
                "with vocab.json and merges.txt; both are published beside the weights"
            )
        try:
            return tokenizers.file(self.extractor.context, os.fspath(path))
        except (OSError, ValueError) as error:
            raise ConfigError(f"tokenizer of {name}: {error}") from error


def scaled(images: jax.Array, side: int, channels: int) -> Float[jax.Array, "b side side channels"]:
    """Images as a network that was trained here is given them: its size and channels, [-1, 1].

    Raises:
        ValueError: colours, and the network knows grey images only.
    """
    if channels == 1 and images.shape[-1] != 1:
        raise ValueError(f"images have {images.shape[-1]} channels, and the network is of grey (1)")
    x = rgb(images)[..., :channels]
    if x.shape[1:3] != (side, side):
        x = jnp.clip(antialiased(x, side), 0, 255)
    return x / 127.5 - 1.0


def _params(tensors: Mapping[str, np.ndarray], config: CLIPConfig) -> Params:
    """Of whichever layout the file has."""
    theirs = "visual_projection.weight" in tensors
    return (clip_from_transformers if theirs else clip_from_openai)(tensors, config)
