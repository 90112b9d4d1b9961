"""A trained CLIP as an encoder of images and texts, read from its work directory.

It computes on the devices of its process alone: several processes may each use one, or one of them.
"""

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, UInt8

import input_pipeline
from input_pipeline.tokenizer import Tokenizer
from training import checkpoints, mesh, tasks, tokens
from training.components import ConfigError, build
from training.config import freeze
from training.contract import EmbeddingContract, identify
from training.processes import on_first
from training.tasks.clip import CLIPTask
from training.workdir import Workdir

# Rows that are computed at a time, at least.
_BATCH = 128


@dataclasses.dataclass(frozen=True)
class Encoder:
    """The CLIP of a run at one checkpoint; all embeddings it gives have length 1.

    Attributes:
        workdir: of the run.
        config: of the run.
        task: of the run.
        params: its parameters.
        step: of the checkpoint.
        mesh: of this process's devices, over which parameters lie and batches are split.
        tokenizer: of the run; None where its data has tokens of its own.
    """

    workdir: Workdir
    config: Any
    task: CLIPTask
    params: Any
    step: int
    mesh: Mesh
    tokenizer: Tokenizer | None

    def images(
        self, images: UInt8[np.ndarray, "count height width channels"]
    ) -> Float[np.ndarray, "count embedding"]:
        """Embeddings of images of the size that CLIP was trained on."""
        return self._batches(lambda x: (self.task.embed_images(self.params, x),), images)[0]

    def texts(
        self, ids: Int[np.ndarray, "count context"]
    ) -> tuple[Float[np.ndarray, "count embedding"], Float[np.ndarray, "count context width"]]:
        """(embeddings, features of each token) of `tokenizer(texts)`."""
        return self._batches(lambda x: self.task.embed_texts(self.params, x), ids)

    def fields(
        self,
        names: Collection[str],
        images: UInt8[np.ndarray, "count height width channels"] | None,
        ids: Int[np.ndarray, "count context"] | None,
    ) -> dict[str, np.ndarray]:
        """Those that are asked for of the fields of embedded examples.

        names: of `image_embedding`, `text_embedding`, `text_features`, `tokens` and `text_mask`;
            what is not needed for them may be None.
        """
        made = {}
        if "image_embedding" in names:
            made["image_embedding"] = self.images(images)
        if {"text_embedding", "text_features"} & set(names):
            made["text_embedding"], made["text_features"] = self.texts(ids)
        if ids is not None:
            made |= {"tokens": ids, "text_mask": self.task.text_mask(ids)}
        return {name: made[name] for name in names}

    def captions(self, texts: Sequence[str]) -> Float[np.ndarray, "count embedding"]:
        """Embeddings of texts."""
        if self.tokenizer is None:
            raise ConfigError(f"{os.fspath(self.workdir)}: this CLIP has no tokenizer")
        return self.texts(self.tokenizer(texts))[0]

    def _batches(self, function: Callable, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """One shape of batch is compiled, whatever the number of rows."""
        ways = mesh.batch_ways(self.mesh)
        size = -(-_BATCH // ways) * ways
        sharding, parts = mesh.batch_sharding(self.mesh), []
        for first in range(0, max(len(rows), 1), size):
            some = rows[first : first + size]
            padded = np.zeros((size, *rows.shape[1:]), rows.dtype)
            padded[: len(some)] = some
            out = function(jax.device_put(padded, sharding))
            parts.append([np.asarray(array)[: len(some)] for array in out])
        return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))

    def source(
        self, source: Any, fields: Sequence[str] = (), count: int = 0, seed: int = 0
    ) -> dict[str, np.ndarray]:
        """Embeddings of a source's images under 'embedding', and other fields beside them.

        count: examples in a random order that the seed fixes; 0: all.
        """
        data = self.config.data
        count = min(count or len(source), len(source))
        loader = input_pipeline.make_loader(
            source,
            image_size=data.image_size,
            channels=data.channels,
            batch_size=min(_BATCH, count),
            seed=seed,
            fields=("image", *fields),
            epochs=1,
            process_index=0,
            process_count=1,
            on_bad_image=data.on_bad_image,
        )
        columns, done = {name: [] for name in ("embedding", *fields)}, 0
        try:
            while done < count:
                batch = next(loader)
                columns["embedding"].append(self.images(batch["image"]))
                for field in fields:
                    columns[field].append(batch[field])
                done += len(batch["image"])
        finally:
            loader.close()
        return {name: np.concatenate(parts)[:count] for name, parts in columns.items()}

    def contract(self, statistics: int) -> EmbeddingContract:
        """That of the work directory; measured and written there where it is of other parameters.

        All processes have to call it together.

        statistics: images of the run's data over which mean and standard deviation are taken.
        """
        # One measures for all: others may round in another way.
        on_first(lambda: self._measure(statistics))
        return EmbeddingContract.read(self.workdir)

    def _measure(self, statistics: int) -> None:
        encoder = identify(self.config.model.to_dict(), self.params)
        if self.workdir.contract.exists():
            stored = EmbeddingContract.read(self.workdir)
            if stored.encoder == encoder:
                return
        source = build(input_pipeline.SOURCES, self.config.data.source, "config.data.source")
        z = self.source(source, count=statistics)["embedding"].astype(np.float64)
        dimension = z.shape[1]
        EmbeddingContract(
            encoder=encoder,
            dimension=dimension,
            normalized=True,
            scale=dimension**0.5,
            mean=tuple(z.mean(0).tolist()),
            std=tuple(z.std(0).tolist()),
            # As DALL-E 2 drops them: no direction at all, which no image has.
            null=(0.0,) * dimension,
        ).write(self.workdir)


def load(
    directory: str | os.PathLike[str],
    ema: str = "",
    checkpoint: int = -1,
    computed: Mapping[str, Any] | None = None,
) -> Encoder:
    """The CLIP of a work directory; all processes have to call it together.

    Args:
        directory: of a run of task 'clip'.
        ema: which parameters, as in `config.sample.ema`; '': those that its config names.
        checkpoint: step; -1: the newest.
        computed: values of `training.contract.COMPUTATION` in place of those of its config.

    Raises:
        ConfigError: no such run or checkpoint, or it is of another task.
    """
    workdir = Workdir(directory)
    config = workdir.read_config()
    config.model.update(computed or {})
    config = freeze(config)
    task = tasks.make_task(config)
    if not isinstance(task, CLIPTask):
        raise ConfigError(
            f"{os.fspath(workdir)}: is a run of task {config.task!r}, and no encoder; name the "
            "work directory of a run of task 'clip'"
        )
    devices = mesh.make_mesh(devices=jax.local_devices())
    params, step = checkpoints.restore_for_sampling(
        workdir.checkpoints, ema or config.sample.ema, task.init, devices, checkpoint, config.ema
    )
    tokenizer = tokens.read(workdir) if config.data.tokenizer else None
    return Encoder(workdir, config, task, params, step, devices, tokenizer)
