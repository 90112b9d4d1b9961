"""Pictures of prompts: `python main.py --mode=generate --workdir=root --prompt="a red circle"`.

    <workdir>/generated/<name>/000000.png ...  samples.npz  grid.png  info.json  chunks/

Pictures are made in chunks of `config.generate.batch_size`, or of as many as are asked for where
these are fewer, and stored as soon as they are made, so a job that was killed goes on at the first
missing chunk.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import Int, UInt8

from pipelines.chunks import Chunks
from pipelines.pictures import finished, store
from pipelines.text_to_image import TextToImage
from training import processes
from training.clock import Clock, Progress, rate
from training.components import ConfigError
from training.workdir import Workdir, provenance


def generate(config: Any, directory: str | os.PathLike[str]) -> None:
    """Make `config.generate.count` pictures of each prompt and store them.

    Raises:
        ConfigError: there is no prompt, one is empty, or the stages cannot make pictures.
    """
    settings = config.generate
    if not settings.prompts:
        raise ConfigError(
            'config.generate.prompts: empty; say what is to be seen, --prompt="a small red circle"'
        )
    pipeline = TextToImage(config, directory)
    pipeline.check_prompts(settings.prompts)
    captions = [prompt for prompt in settings.prompts for _ in range(settings.count)]
    indices = np.tile(np.arange(settings.count, dtype=np.int32), len(settings.prompts))
    out, _ = draw(pipeline, config, directory, captions, indices)
    if processes.first():
        print(os.fspath(out / "grid.png"), flush=True)


def draw(
    pipeline: TextToImage,
    config: Any,
    directory: str | os.PathLike[str],
    captions: Sequence[str],
    indices: Int[np.ndarray, " count"],
) -> tuple[epath.Path, UInt8[np.ndarray, "count size size channels"]]:
    """(where they are, pictures of captions), drawn where they are not there yet.

    With several processes each stores the rows of its own devices and process 0 puts them together;
    the work directory has to be shared between the hosts.

    indices: number of each sample, which with `config.generate.seed` and the caption decides it.
    """
    count, ways = len(captions), pipeline.batch_ways
    size = -(-min(config.generate.batch_size, count) // ways) * ways
    what = {
        "stages": pipeline.identity,
        "seed": config.generate.seed,
        "captions": list(captions),
        "indices": indices.tolist(),
        "batch_size": size,
    }
    out = Workdir(directory).generated / _name(what)
    chunks = Chunks(out / "chunks", size)
    if not processes.on_first(lambda: finished(out, count)):
        clock, missing = Clock(), chunks.missing(count)
        _make(pipeline, config.generate.seed, captions, indices, chunks, missing, clock)
        info = what | {
            "count": count,
            "made_by_this_start": sum(_kept(chunks, k, count) for k in missing),
            "seconds": clock.totals(),
            "provenance": provenance(),
        }
        multihost_utils.sync_global_devices("drawn")
        processes.on_first(
            lambda: store(out, {"arr_0": chunks.read(count)["images"]}, info, captions)
        )
    return out, chunks.read(count)["images"]


def _name(what: dict[str, Any]) -> str:
    """A directory's name: the first caption, how many, and a hash of all that decides them."""
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
    first = re.sub(r"[^A-Za-z0-9]+", "_", what["captions"][0]).strip("_")[:40]
    return f"{first}-{len(what['captions'])}-seed{what['seed']}-{digest}"


def _kept(chunks: Chunks, k: int, count: int) -> int:
    """How many rows of chunk k are pictures; the others fill it up."""
    return min(chunks.size, count - k * chunks.size)


def _make(
    pipeline: TextToImage,
    seed: int,
    captions: Sequence[str],
    indices: Int[np.ndarray, " count"],
    chunks: Chunks,
    missing: Sequence[int],
    clock: Clock,
) -> None:
    kept = [_kept(chunks, k, len(captions)) for k in missing]
    progress, made = Progress(sum(kept), unit="image", every=5.0), 0
    for number, k in enumerate(missing):
        # Chunks are of one size: the last one is filled up from the start.
        rows = chunks.rows(k)
        of = rows % len(captions)
        # The first one compiles.
        with clock("step" if number else "compile"):
            images = pipeline([captions[i] for i in of], seed, indices[of])
            images.block_until_ready()
        with clock("write"):
            chunks.write(k, pipeline.place(rows), images=pipeline.place(images))
        made += kept[number]
        speed = rate(made - kept[0], clock.totals())
        progress.log(made, {} if speed is None else {"images/s": speed})
    progress.close()
