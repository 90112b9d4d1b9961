"""Sets of images that an evaluation measures: drawn for it, drawn before, or made by others."""

import abc
import hashlib
import io
import json
import os
import zipfile
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8

from evaluation import image_files
from evaluation.image_files import Images
from pipelines.sampling import Samples
from training.components import ConfigError
from training.workdir import Workdir


class ImageSet(Images):
    """Images, and what a row of results says of them.

    Attributes:
        about: what decides the images, as JSON values.
        directory: where features of them are kept.
    """

    about: dict[str, Any]
    directory: epath.Path

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the images, as JSON values."""
        return self.about

    def prepare(self) -> None:
        """Draws what is missing; called before anything is read."""

    @abc.abstractmethod
    def info(self) -> dict[str, Any]:
        """What else there is to say of the images in a row."""


class Drawn(ImageSet):
    """Samples of a run, drawn as far as they are missing.

    Args:
        config: of the run, with the setting of `config.sample`.
        workdir: of the run.
        programs: as of `pipelines.sampling.Samples`.
    """

    def __init__(self, config: Any, workdir: Workdir, programs: dict[Any, Any]):
        self._samples = Samples(config, workdir, programs)
        self._took: dict[str, Any] = {}
        self._chunk: tuple[int, np.ndarray] | None = None
        self.name, self.count = self._samples.out.name, config.sample.count
        self.side, self.channels = config.data.image_size, config.data.channels
        self.about = {"samples": self.name, "count": self.count}
        self.directory = self._samples.out / "features"

    def prepare(self) -> None:
        """Draws what is missing.

        Raises:
            ConfigError: something is, and the checkpoint is not there.
        """
        self._took = self._samples.draw(self.count)

    def info(self) -> dict[str, Any]:
        """The setting, and what drawing it took."""
        return {"info": self._samples.what | self._took}

    def rows(self, first: int, last: int) -> UInt8[np.ndarray, "rows side side channels"]:
        """Images `first` to `last` - 1."""
        size, parts = self._samples.chunks.size, []
        for k in range(first // size, -(-last // size)):
            images = self._read(k)
            parts.append(images[max(first - k * size, 0) : last - k * size])
        return np.concatenate(parts)

    def _read(self, k: int) -> np.ndarray:
        # Batches of a feature network may be parts of a chunk.
        if self._chunk is None or self._chunk[0] != k:
            self._chunk = k, self._samples.chunks.read_chunk(k)["images"]
        return self._chunk[1]

    @property
    def labels(self) -> Int[np.ndarray, " count"] | None:
        """Of each image; None where the model has no classes."""
        return self._samples.chunks.read(self.count)["labels"] if self._samples.labelled else None


class Stored(ImageSet):
    """The samples that `--mode=sample` finished last.

    Raises:
        ConfigError: there are none, or their file is damaged.
    """

    def __init__(self, workdir: Workdir):
        self._out = newest_samples(workdir)
        path = self._out / "samples.npz"
        data = path.read_bytes()
        self.name, self.directory = self._out.name, self._out / "features"
        self.about = {"samples": self.name, "sha256": hashlib.sha256(data).hexdigest()}
        try:
            arrays = dict(np.load(io.BytesIO(data), allow_pickle=False))
            self._images, self._labels = arrays["arr_0"], arrays.get("arr_1")
        except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ConfigError(
                f"{os.fspath(path)}: damaged ({error}); delete "
                f"{os.fspath(self._out / 'info.json')} and run --mode=sample again, which puts the "
                "file together from its chunks"
            ) from None
        self.count, self.side, _, self.channels = self._images.shape

    def info(self) -> dict[str, Any]:
        """What was written when they were made."""
        return {"info": json.loads((self._out / "info.json").read_text())}

    def rows(self, first: int, last: int) -> UInt8[np.ndarray, "rows side side channels"]:
        """Images `first` to `last` - 1."""
        return self._images[first:last]

    @property
    def labels(self) -> Int[np.ndarray, " count"] | None:
        """Of each image; None where the model has no classes."""
        return self._labels


class Given(ImageSet):
    """Images that any program made, a folder, archive or .npz.

    Raises:
        ConfigError: what `image_files.read` refuses.
    """

    def __init__(self, path: str, workdir: Workdir):
        try:
            self._images = image_files.read(path)
        except image_files.FileError as error:
            raise ConfigError(f"config.evaluate.images = {error}") from error
        self.name, self.count = self._images.name, self._images.count
        self.side, self.channels = self._images.side, self._images.channels
        self.about = {"images": self._images.identity}
        digest = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:16]
        self.directory = workdir.evaluation / "features" / digest

    def info(self) -> dict[str, Any]:
        """Where they were."""
        return {"path": self.name}

    def rows(self, first: int, last: int) -> UInt8[np.ndarray, "rows side side channels"]:
        """Images `first` to `last` - 1."""
        return self._images.rows(first, last)

    @property
    def labels(self) -> Int[np.ndarray, " count"] | None:
        """Of each image, if the file has them."""
        return self._images.labels


def newest_samples(workdir: Workdir) -> epath.Path:
    """The directory of samples that was finished last.

    Raises:
        ConfigError: there is none.
    """
    infos = list(workdir.samples.glob("*/info.json"))
    if not infos:
        raise ConfigError(
            f"{os.fspath(workdir.samples)}: no samples yet; make some first (--mode=sample), or "
            "set config.evaluate.count to have them drawn here"
        )
    newest = max(infos, key=lambda path: (json.loads(path.read_text())["provenance"]["time"], path))
    return newest.parent
