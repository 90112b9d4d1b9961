"""Reference statistics that other programs published, in the formats that these have.

docs/references.md lists the formats. What a file is is told by its keys; where they allow two
readings, or none, it is refused.
"""

import hashlib
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import pickled_statistics
from evaluation.image_files import ArrayImages, ArrayMember, FileError, refused_if_damaged
from evaluation.metrics.frechet import Moments
from evaluation.references import ABOUT, Reference, load

# Moments of one output, which keys do not name: Inception's last pooling or an embedding.
_MOMENTS = (("mu", "sigma"), ("ref_mu", "ref_sigma"))
_SPATIAL = ("mu_s", "sigma_s")
_FEATURES = ("pool_3", "feats")
_MAIN_OUTPUTS = ("pool3", "embedding")
# Metrics of EDM2 and the output that each is of.
_EDM2 = {"fid": "pool3", "fd_dinov2": "embedding"}
_ALLOWED = (
    "a reference has mu and sigma (or ref_mu and ref_sigma), features pool_3 or feats, or images "
    "arr_0"
)
# Of the largest entry of a covariance: what rounding to float32 leaves of symmetry.
_ASYMMETRY = 1e-5


def read(path: str | os.PathLike[str], outputs: Mapping[str, int]) -> Reference:
    """The reference in a file: .npz, or EDM2's .pkl, from which no code is run.

    Images of a file are not loaded: they are `Reference.images`, for `references.completed`.

    Args:
        path: of the file.
        outputs: dimensions by name of what the extractor gives; of a file that has more, the rest
            is left alone.

    Raises:
        FileError: it is damaged, ambiguous, or of another extractor.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileError(f"{path}: there is no such file; give a reference, .npz or .pkl")
    if path.suffix not in (".npz", ".pkl"):
        raise FileError(f"{path}: neither .npz nor .pkl; rename it if it is one of these")
    return _read_npz(path, outputs) if path.suffix == ".npz" else _read_pickle(path, outputs)


def _read_npz(path: Path, outputs: Mapping[str, int]) -> Reference:
    # Names first: a member may be 10,000 images that are not to be loaded.
    with refused_if_damaged(path), zipfile.ZipFile(path) as archive:
        keys = [name.removesuffix(".npy") for name in archive.namelist()]
    if ABOUT in keys:
        return _own(path, outputs)
    kind, pairs, features, images = _sniff(path, keys)
    get = lambda key: ArrayMember(str(path), key).all()  # noqa: E731
    moments, rows, used = {}, {}, {}
    for mean, covariance in pairs:
        mu = get(mean)
        output = "spatial" if mean == "mu_s" else _main_output(path, mean, mu, outputs)
        if output in outputs:
            moments[output] = _moments(path, (mean, covariance), mu, get(covariance))
            used[output] = mean
    for key in features:
        found = get(key)
        output = _main_output(path, key, found, outputs)
        rows[output] = _features(path, key, found)
        moments[output], used[output] = Moments.of(rows[output]), key
    identity = _identity(path, kind, used)
    return _checked(
        path,
        Reference(path.stem, identity, moments, rows, ArrayImages(str(path)) if images else None),
        outputs,
    )


def _sniff(path: Path, keys: list[str]) -> tuple[str, list[tuple[str, str]], list[str], bool]:
    """(kind of file, pairs of moments, features, whether there are images) that a file has."""
    for mean, covariance in (*_MOMENTS, _SPATIAL):
        if (mean in keys) != (covariance in keys):
            there, lacking = (mean, covariance) if mean in keys else (covariance, mean)
            raise FileError(f"{path}: {there} without {lacking}; {_ALLOWED}; take a whole file")
    main = [pair for pair in _MOMENTS if pair[0] in keys]
    features = [key for key in _FEATURES if key in keys]
    images = "arr_0" in keys
    readings = [pair[0] for pair in main] + features
    if len(readings) > 1 or (features and images):
        names = " and ".join([*readings, *(["arr_0"] if features and images else [])])
        raise FileError(
            f"{path}: {names} in one file, of which any may be meant; keep one of them and save "
            "the file again"
        )
    spatial = [_SPATIAL] if _SPATIAL[0] in keys else []
    if not (readings or images):
        raise FileError(f"{path}: no mu; it has {', '.join(keys) or 'nothing'}; {_ALLOWED}")
    if features:
        return "features", [], features, False
    if images:
        return ("adm" if main else "images"), [*main, *spatial], [], True
    return "moments", [*main, *spatial], [], False


def _main_output(path: Path, key: str, found: np.ndarray, outputs: Mapping[str, int]) -> str:
    """The output that a key is of which names none: the one of as many dimensions."""
    dim = found.shape[-1] if found.ndim else 0
    able = {name: outputs[name] for name in _MAIN_OUTPUTS if name in outputs}
    names = [name for name, size in able.items() if size == dim]
    if len(names) > 1:
        raise FileError(
            f"{path}: {key} has {dim} dimensions, as have {' and '.join(names)}; ask for one of "
            "these outputs"
        )
    if not names:
        raise _other_extractor(path, key, dim, able)
    return names[0]


def _other_extractor(path: Path, key: str, dim: int, outputs: Mapping[str, int]) -> FileError:
    given = ", ".join(f"{name} of {size}" for name, size in outputs.items()) or "none of its kind"
    return FileError(
        f"{path}: {key} has {dim} dimensions, and the extractor gives {given}; take the reference "
        "that was made with this network"
    )


def _moments(path: Path, keys: tuple[str, str], mu: Any, sigma: Any, count: int = 0) -> Moments:
    where, (mean, covariance) = f"{path}", keys
    mu, sigma = np.asarray(mu), np.asarray(sigma)
    if mu.dtype.kind not in "fiu" or sigma.dtype.kind not in "fiu":
        raise FileError(
            f"{where}: {mean} is {mu.dtype} and {covariance} {sigma.dtype}; both are real numbers"
        )
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise FileError(
            f"{where}: {mean} is {list(mu.shape)} and {covariance} {list(sigma.shape)}; they are "
            "[dim] and [dim, dim]; save mean and covariance of the features"
        )
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    for name, values in ((mean, mu), (covariance, sigma)):
        if not np.isfinite(values).all():
            bad = int(np.sum(~np.isfinite(values)))
            raise FileError(
                f"{where}: {bad} of {values.size} entries of {name} are not finite; make it anew"
            )
    off = float(np.abs(sigma - sigma.T).max(initial=0.0))
    if off > _ASYMMETRY * float(np.abs(sigma).max(initial=0.0)):
        raise FileError(
            f"{where}: {covariance} is not symmetric (by {off:.3g}); a covariance is; make it anew"
        )
    if sigma.diagonal().min(initial=0.0) < 0:
        raise FileError(
            f"{where}: {covariance} has the variance {sigma.diagonal().min():.3g}, and none is "
            "below 0; make it anew"
        )
    # Symmetric to the last bit, as the eigenvalues are of one triangle.
    return Moments(mu, (sigma + sigma.T) / 2, count)


def _features(path: Path, key: str, found: np.ndarray) -> np.ndarray:
    if found.dtype.kind != "f" or found.ndim != 2 or len(found) < 2:
        raise FileError(
            f"{path}: {key} is {found.dtype} {list(found.shape)}; features are real numbers "
            "[count, dim] of two images or more"
        )
    if not np.isfinite(found).all():
        raise FileError(f"{path}: {key} has entries that are not finite; make it anew")
    return found.astype(np.float32)


def _read_pickle(path: Path, outputs: Mapping[str, int]) -> Reference:
    try:
        found = pickled_statistics.loads(path.read_bytes())
    except pickle.UnpicklingError as error:
        raise FileError(
            f"{path}: not the statistics of EDM2: {error}; allowed are dicts, strings, numbers and "
            "arrays of numbers, and nothing is run; fetch it anew, or save mu and sigma as .npz"
        ) from error
    form = "EDM2's are {num_images, fid: {mu, sigma}, fd_dinov2: {mu, sigma}}"
    keys = list(found) if isinstance(found, dict) else [type(found).__name__]
    metrics = {key: output for key, output in _EDM2.items() if key in keys}
    if not metrics:
        raise FileError(f"{path}: no mu: it has {', '.join(keys) or 'nothing'}; {form}")
    count = found.get("num_images", 0)
    if not isinstance(count, int | np.integer):
        raise FileError(f"{path}: num_images is {count!r:.40}; it is a number of images; {form}")
    moments, used = {}, {}
    for key, output in metrics.items():
        pair = found[key]
        if not isinstance(pair, dict) or not {"mu", "sigma"} <= set(pair):
            has = ", ".join(pair) if isinstance(pair, dict) else type(pair).__name__
            raise FileError(f"{path}: {key} has no mu and sigma but {has}; {form}")
        if output in outputs:
            names = (f"{key}.mu", f"{key}.sigma")
            moments[output] = _moments(path, names, pair["mu"], pair["sigma"], int(count))
            used[output] = key
    if not moments:
        raise FileError(
            f"{path}: has {', '.join(metrics)} ({', '.join(metrics.values())}), and the extractor "
            f"gives {', '.join(outputs)}; take the reference that was made with this network"
        )
    reference = Reference(path.stem, _identity(path, "edm2", used), moments, {})
    return _checked(path, reference, outputs)


def _own(path: Path, outputs: Mapping[str, int]) -> Reference:
    found = load(path)
    moments = {name: value for name, value in found.moments.items() if name in outputs}
    if not moments:
        raise FileError(
            f"{path}: is of {', '.join(found.moments)}, and the extractor gives "
            f"{', '.join(outputs)}; take the reference that was made with this network"
        )
    features = {name: value for name, value in found.features.items() if name in outputs}
    return _checked(path, Reference(found.name, found.identity, moments, features), outputs)


def _checked(path: Path, reference: Reference, outputs: Mapping[str, int]) -> Reference:
    for name, found in reference.moments.items():
        if len(found.mean) != outputs[name]:
            raise _other_extractor(path, f"mean of {name}", len(found.mean), outputs)
    return reference


def _identity(path: Path, kind: str, used: Mapping[str, str]) -> dict[str, Any]:
    """JSON: the file and its digest, what kind it was taken for, which key is which output."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": str(path), "sha256": digest, "kind": kind, "keys": dict(used)}
