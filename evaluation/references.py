"""What generated images are compared with: moments and features of real ones, computed or kept."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from evaluation.extractors import Extractor
from evaluation.features import extract, set_aside
from evaluation.image_files import FileError, Images, refused_if_damaged
from evaluation.metrics.frechet import Moments
from input_pipeline.decoder import Decoder
from input_pipeline.sources.base import Source
from pipelines.chunks import Chunks
from training.files import atomic_write, npz
from training.mesh import make_mesh
from training.processes import on_first

# Part of every key of the cache; a change of what is computed below raises it.
VERSION = 1
# Rows of features that are kept beside the moments, for KID, precision and recall.
KEPT = 10_000
# Of a file that `save` wrote: name, identity and counts as JSON.
ABOUT = "reference"
_FILE = "reference.npz"
# What others call the moments of these, so that their programs read our files.
_SUFFIXES = {"pool3": "", "spatial": "_s"}
_THREADS = min(16, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class Reference:
    """Real images, as an extractor sees them.

    Attributes:
        name: for a person.
        identity: JSON values: path and digest of a file, or what it was computed from and by.
        moments: by name of the extractor's output; a count of 0 is one that the file does not tell.
        features: rows by the same names, a random part where there are many; those that a file of
            moments lacks are not in it.
        images: of a file that has images beside moments, or alone; see `completed`.
    """

    name: str
    identity: Mapping[str, Any]
    moments: Mapping[str, Moments]
    features: Mapping[str, np.ndarray]
    images: Images | None = None


class SourceImages(Images):
    """Images of a data source as the data pipeline crops them, in the order of the source.

    Args:
        source: of `input_pipeline.SOURCES`.
        image_size: side in pixels.
        channels: 1 (grey) or 3 (RGB).
        count: how many, drawn at random with a fixed seed; 0: all.
        on_bad_image: 'raise' an error with its name, or 'skip': take the next one, and warn.

    Raises:
        ValueError: the source has no images, or fewer.
    """

    def __init__(
        self,
        source: Source,
        image_size: int,
        channels: int,
        count: int = 0,
        on_bad_image: str = "raise",
    ):
        source.require(("image",))
        if not 0 <= count <= len(source):
            raise ValueError(f"count: {count}; {source.name} has {len(source)} images (0: all)")
        self.name, self.side, self.channels = source.name, image_size, channels
        self.count = count or len(source)
        self._source = source
        self._decoder = Decoder(source, image_size, channels, ("image",), on_bad_image)

    @property
    def identity(self) -> dict[str, Any]:
        """Source, number and form of the images, and digests of the first and the last one."""
        ends = [self.rows(k, k + 1) for k in (0, self.count - 1)]
        return {
            "source": self.name,
            "fingerprint": self._source.fingerprint,
            "count": self.count,
            "of": len(self._source),
            "image_size": self.side,
            "channels": self.channels,
            "on_bad_image": self._decoder.on_bad_image,
            "ends": [hashlib.sha256(end.tobytes()).hexdigest() for end in ends],
        }

    def rows(self, first: int, last: int) -> UInt8[np.ndarray, "rows side side channels"]:
        """Images `first` to `last` - 1."""
        # A source may be sorted by class: of a part, a random one.
        shuffle = self.count < len(self._source)
        indices = self._source.order(range(first, last), 0, shuffle)
        parts = [indices[k::_THREADS] for k in range(min(_THREADS, len(indices)))]
        images = np.empty((len(indices), self.side, self.side, self.channels), np.uint8)
        with ThreadPoolExecutor(_THREADS) as pool:
            for k, part in enumerate(pool.map(self._decode, parts)):
                images[k::_THREADS] = part
        return images

    def _decode(self, indices: Sequence[int]) -> UInt8[np.ndarray, "rows side side channels"]:
        skipped: list[str] = []
        images = [example["image"] for example in self._decoder(indices, skipped)]
        for bad in skipped:
            logging.warning("Skipped a bad image, %s", bad)
        return np.stack(images)


def compute(
    images: Images,
    extractor: Extractor,
    cache: str | os.PathLike[str],
    *,
    outputs: Sequence[str] = (),
    batch_size: int = 256,
    mesh: Mesh | None = None,
) -> Reference:
    """Moments and a part of the features of images; kept in <cache>, and read from there again.

        <cache>/<extractor>-<key>/reference.npz   or, until it is whole,  features-<size>/

    The key is a digest of the identities of images and extractor. Features are stored batch by
    batch, so a call that was killed goes on at the first batch that is missing. With several
    processes each stores the rows of its own devices; the cache is shared between the hosts.

    Args:
        images: a `SourceImages`, or what `image_files.read` gives.
        extractor: what sees them.
        cache: a directory; for all references.
        outputs: of the extractor; by default all.
        batch_size: images at a time, over all devices; rounded up to share evenly.
        mesh: devices; by default all.

    Raises:
        ValueError: fewer than two images, or features that are not finite.
    """
    mesh = make_mesh() if mesh is None else mesh
    outputs = tuple(outputs) or tuple(extractor.outputs)
    if images.count < 2:
        raise ValueError(f"{images.name}: {images.count} image; moments need two or more")
    identity = _json(
        {
            "images": images.identity,
            "extractor": {"name": extractor.name, **extractor.identity},
            "outputs": {name: extractor.outputs[name] for name in outputs},
            "version": VERSION,
        }
    )
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    label = re.sub(r"[^A-Za-z0-9]+", "_", extractor.name).strip("_")
    entry = epath.Path(cache) / f"{label}-{key}"
    path = entry / _FILE
    if not on_first(lambda: _usable(path, identity)):
        size = min(batch_size, images.count)
        parts = lambda rows: entry / f"features-{rows}"  # noqa: E731
        chunks = extract(images, extractor, outputs, parts, batch_size=size, mesh=mesh)
        # Another job may have been at the same, and have ended.
        on_first(lambda: _usable(path, identity) or _finish(path, images, identity, chunks))
    # Equal images have one entry, wherever they lie.
    reference = dataclasses.replace(load(path), name=images.name)
    # A kill may have come between the whole entry and the end of what it is made of.
    on_first(lambda: _remove_parts(entry))
    return reference


def completed(
    reference: Reference, extractor: Extractor, cache: str | os.PathLike[str], **settings: Any
) -> Reference:
    """A reference with the features of the images in its file; `settings` are those of `compute`.

    Moments that the file has stay, as they may be of more images. One without images stays as it
    is.
    """
    if reference.images is None:
        return reference
    own = compute(reference.images, extractor, cache, **settings)
    identity = {**reference.identity, "computed": own.identity}
    moments = reference.moments or own.moments
    return Reference(reference.name, identity, moments, own.features)


def save(reference: Reference, path: str | os.PathLike[str]) -> None:
    """Write an .npz that `load` and `reference_files.read` give back equal, but for its images.

    Moments are mu, sigma (pool3), mu_s, sigma_s (spatial) or mu_<output>, sigma_<output>, features
    features_<output>: programs of others read the first two.
    """
    about = {
        "name": reference.name,
        "identity": dict(reference.identity),
        "counts": {output: found.count for output, found in reference.moments.items()},
        "features": list(reference.features),
    }
    arrays = {ABOUT: np.array(json.dumps(about))}
    for output, found in reference.moments.items():
        mean, covariance = moment_keys(output)
        arrays |= {mean: found.mean, covariance: found.covariance}
    arrays |= {f"features_{output}": rows for output, rows in reference.features.items()}
    atomic_write(path, npz(**arrays))


def load(path: str | os.PathLike[str]) -> Reference:
    """What `save` wrote.

    Raises:
        FileError: it is damaged.
    """
    path = epath.Path(path)
    with (
        refused_if_damaged(path),
        path.open("rb") as file,
        np.lib.npyio.NpzFile(file, allow_pickle=False) as arrays,
    ):
        try:
            about = json.loads(arrays[ABOUT].item())
            moments = {
                output: Moments(*(arrays[key] for key in moment_keys(output)), count)
                for output, count in about["counts"].items()
            }
            features = {output: arrays[f"features_{output}"] for output in about["features"]}
            return Reference(about["name"], about["identity"], moments, features)
        except KeyError as error:
            raise ValueError(f"no {error.args[0]} in it") from error


def moment_keys(output: str) -> tuple[str, str]:
    """Names of mean and covariance in a file."""
    suffix = _SUFFIXES.get(output, f"_{output}")
    return f"mu{suffix}", f"sigma{suffix}"


def _json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=dict))


def _usable(path: epath.Path, identity: Mapping[str, Any]) -> bool:
    if not path.exists():
        return False
    try:
        if load(path).identity == identity:
            return True
        wrong = f"{path}: it is of other images or another network than its name says"
    except FileError as error:
        wrong = str(error)
    set_aside(path, wrong)
    return False


def _remove_parts(entry: epath.Path) -> None:
    for parts in entry.glob("features-*"):
        # Another job may be at the same.
        with contextlib.suppress(FileNotFoundError):
            parts.rmtree()


def _finish(path: epath.Path, images: Images, identity: Mapping[str, Any], chunks: Chunks) -> None:
    """Moments and kept rows of all chunks, none of which is held for longer than it takes."""
    # At random, as rows may be sorted by class; the same ones each time.
    chosen = np.zeros(images.count, bool)
    chosen[np.random.RandomState(0).permutation(images.count)[:KEPT]] = True
    sums: dict[str, _Sums] = {}
    kept: dict[str, list[np.ndarray]] = {}
    start = 0
    for found in chunks.each(images.count):
        for name, rows in found.items():
            if not np.isfinite(rows).all():
                raise ValueError(
                    f"{images.name}: features {name} are not finite among images {start} to "
                    f"{start + len(rows) - 1}; look at these images and at the network's weights"
                )
            sums.setdefault(name, _Sums(rows[0].astype(np.float64))).add(rows)
            kept.setdefault(name, []).append(rows[chosen[start : start + len(rows)]])
        start += len(rows)
    moments = {name: found.moments() for name, found in sums.items()}
    features = {name: np.concatenate(parts) for name, parts in kept.items()}
    save(Reference(images.name, identity, moments, features), path)


class _Sums:
    """Moments of rows that come in parts, in float64 about a point near their mean."""

    def __init__(self, shift: Float[np.ndarray, " dim"]):
        self._shift, self._count = shift, 0
        self._sum = np.zeros_like(shift)
        self._products = np.zeros((len(shift), len(shift)))

    def add(self, rows: Float[np.ndarray, "rows dim"]) -> None:
        off = rows.astype(np.float64) - self._shift
        self._count += len(rows)
        self._sum += off.sum(0)
        self._products += off.T @ off

    def moments(self) -> Moments:
        off = self._sum / self._count
        covariance = (self._products - np.outer(off, self._sum)) / (self._count - 1)
        return Moments(self._shift + off, covariance, self._count)
