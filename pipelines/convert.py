"""A data source as records, decoded once: `python main.py --mode=convert`.

<workdir>/<convert.split>/00000-of-00004.array_record ...  info.json
"""

import os
import sys
import time
from typing import Any

import jax
from etils import epath

import input_pipeline
from input_pipeline.convert import convert as write_records
from training import components
from training.clock import Progress
from training.components import ConfigError
from training.files import is_bucket
from training.workdir import provenance

_SECONDS_A_LINE = 10


def convert(config: Any, directory: str | os.PathLike[str]) -> None:
    """Write the examples of `config.data.source` as records, and print the source to use then.

    Raises:
        ConfigError: the source or the directory does not do.
    """
    # Nothing is computed here, and a training that runs on the accelerator needs all its memory.
    jax.config.update("jax_platforms", "cpu")
    if is_bucket(epath.Path(directory)):
        raise ConfigError(
            f"--workdir={os.fspath(directory)}: records are read from disks; convert to a local "
            "directory"
        )
    source = components.build(input_pipeline.SOURCES, config.data.source, "config.data.source")
    report = Report(len(source))
    try:
        write_records(
            source,
            directory,
            config.convert.split,
            image_size=config.data.image_size,
            channels=config.data.channels,
            fields=config.convert.fields,
            shards=config.convert.shards,
            workers=config.data.workers,
            on_bad_image=config.data.on_bad_image,
            made=provenance() | {"command": sys.argv},
            progress=report,
        )
    except (ValueError, FileExistsError) as error:
        raise ConfigError(f"config.data.source = {config.data.source!r}: {error}") from error
    finally:
        report.close()
    path = os.path.abspath(directory)
    print(f'--config.data.source="records(path={path!r}, split={config.convert.split!r})"')


class Report:
    """Tells how many examples are done, how fast and how long it will take."""

    def __init__(self, total: int):
        self._total = total
        self._progress: Progress | None = None

    def __call__(self, done: int) -> None:
        """So many examples are done."""
        now = time.perf_counter()
        if self._progress is None:  # what an earlier start did is not this one's speed
            self._progress = Progress(self._total, done, unit="example")
            self._first, self._start, self._line = done, now, now
            return
        self._progress.update(done)
        if now - self._line >= _SECONDS_A_LINE or done == self._total:
            speed = (done - self._first) / (now - self._start)
            left = (self._total - done) / speed if speed else None
            self._progress.log(done, {"examples/s": speed}, left)
            self._line = now

    def close(self) -> None:
        """Leave the terminal on a fresh line."""
        if self._progress is not None:
            self._progress.close()
