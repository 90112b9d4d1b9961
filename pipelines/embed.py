"""A data source with the embeddings of a CLIP: `python main.py --mode=embed`.

<workdir>/embeddings/<embed.split>/ as records, and contract.json beside the splits.
"""

import os
import sys
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

import input_pipeline
from input_pipeline.convert import convert as write_records
from input_pipeline.images import to_array
from input_pipeline.sources.base import Source
from pipelines.convert import Report
from training import components, encoder, processes
from training import contract as contracts
from training.components import ConfigError
from training.contract import EmbeddingContract, check_same
from training.encoder import Encoder
from training.files import is_bucket
from training.workdir import provenance


class Embedded(Source):
    """The examples of a source, and beside each what CLIP makes of it.

    `image_embedding` and `text_embedding` are float32 of length 1, `tokens` int32 [context],
    `text_mask` bool [context], True up to and with the end token, and on demand `text_features`
    float32 [context, width].
    """

    def __init__(self, source: Source, clip: Encoder, identity: str, text_features: bool):
        self.name = f"embeddings of {source.name}"
        self.class_names = source.class_names
        made = ("image_embedding", "text_embedding", "tokens", "text_mask")
        self._made = (*made, "text_features") if text_features else made
        self.fields = (*source.fields, *self._made)
        self._source, self._clip, self._identity = source, clip, identity

    @property
    def fingerprint(self) -> str:
        """Of the source and of the encoder."""
        return f"{self._source.fingerprint}-clip-{self._identity}"

    def __len__(self) -> int:
        return len(self._source)

    def describe(self, index: int) -> str:
        """Where an example comes from, for messages."""
        return self._source.describe(index)

    def example(self, index: int, fields: Collection[str]) -> dict:
        """The fields asked for."""
        return self.examples([index], fields)[0]

    def examples(self, indices: Sequence[int], fields: Collection[str]) -> list[dict]:
        """Many examples, embedded together."""
        clip, images = self._clip, None
        own = [field for field in fields if field not in self._made]
        needed = {*own, "image"} | {"caption" if clip.tokenizer else "tokens"}
        found = self._source.examples(indices, sorted(needed))
        if "image_embedding" in fields:
            data = clip.config.data
            images = np.stack(
                [to_array(each["image"], data.image_size, data.channels) for each in found]
            )
        if clip.tokenizer:
            ids = clip.tokenizer([each["caption"] for each in found])
        else:
            ids = np.stack([each["tokens"] for each in found]).astype(np.int32)
        made = clip.fields([name for name in self._made if name in fields], images, ids)
        return [
            {name: each[name] for name in own} | {name: rows[k] for name, rows in made.items()}
            for k, each in enumerate(found)
        ]


def embed(config: Any, directory: str | os.PathLike[str]) -> None:
    """Write a source with its embeddings, and print the source to use then.

    With several processes the first one does it.

    Raises:
        ConfigError: the run is no CLIP, or the source or the directory does not do.
    """
    check_directory(directory)
    clip = encoder.load(directory, config.sample.ema, config.sample.checkpoint)
    contract = clip.contract(config.embed.statistics)
    processes.on_first(lambda: _write(config, clip, contract))


def check_directory(directory: str | os.PathLike[str]) -> None:
    """Refuses a bucket.

    Raises:
        ConfigError: it is one.
    """
    if is_bucket(directory):
        raise ConfigError(
            f"--workdir={os.fspath(directory)}: embeddings are records, which are written to disks "
            "and read from there; take a local directory, or let stages embed in each step "
            "(config.embeddings = 'step' of a stack, clip= of a task)"
        )


def _write(config: Any, clip: Encoder, contract: EmbeddingContract) -> None:
    field = "embed.source" if config.embed.source else "data.source"
    string = config.embed.source or config.data.source
    source = components.build(input_pipeline.SOURCES, string, f"config.{field}")
    embedded = Embedded(source, clip, contract.encoder, config.embed.text_features)
    report = Report(len(source))
    out = clip.workdir.embeddings
    if any(out.glob("*/info.json")) and (out / contracts.FILE).exists():
        names = (f"what is in {os.fspath(out)} (remove it to embed anew)", "this checkpoint")
        check_same(EmbeddingContract.read(out), contract, names)
    try:
        contract.write(out)
        write_records(
            embedded,
            out,
            config.embed.split,
            image_size=config.embed.image_size or config.data.image_size,
            channels=config.data.channels,
            shards=config.convert.shards,
            on_bad_image=config.data.on_bad_image,
            made=provenance() | {"command": sys.argv, "checkpoint": clip.step},
            progress=report,
        )
    except (ValueError, FileExistsError) as error:
        raise ConfigError(f"config.{field} = {string!r}: {error}") from error
    finally:
        report.close()
    path = os.path.abspath(out)
    print(f'--config.data.source="records(path={path!r}, split={config.embed.split!r})"')
