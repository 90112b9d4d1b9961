"""Published weights of feature networks: where they are, and that they are the right ones."""

import contextlib
import dataclasses
import functools
import hashlib
import http.client
import os
import secrets
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from models.functional import Params
from models.pretrained.torch_file import read_weights
from training.components import ConfigError, nearest

_TIMEOUT, _CHUNK = 60, 1 << 20


@dataclasses.dataclass(frozen=True)
class Published:
    """A file of weights.

    Attributes:
        file: what it must be called here.
        url: where it is published.
        checksum: its sha256 in hexadecimal digits, or as many of the first as are published.
        size: in bytes; 0: not known.
    """

    file: str
    url: str
    checksum: str
    size: int = 0


_HUGGING_FACE = "https://huggingface.co/openai"
KNOWN: Mapping[str, Published] = {
    # The same tensors are pytorch-fid's pt_inception-2015-12-05-6726825d.pth.
    "inception": Published(
        "weights-inception-2015-12-05-6726825d.pth",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
        "6726825d",
    ),
    "dinov2_vitl14": Published(
        "dinov2_vitl14_pretrain.pth",
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
        1_217_586_395,
    ),
    "clip_vitl14": Published(
        "clip-vit-large-patch14.safetensors",
        f"{_HUGGING_FACE}/clip-vit-large-patch14/resolve/"
        "32bd64288804d66eefd0ccbe215aa642df71cc41/model.safetensors",
        "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
        1_710_540_580,
    ),
    "clip_vitl14_336": Published(
        "clip-vit-large-patch14-336.bin",
        f"{_HUGGING_FACE}/clip-vit-large-patch14-336/resolve/"
        "ce19dc912ca5cd21c8a653c79e251e808ccabcd1/pytorch_model.bin",
        "c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801",
        1_711_974_081,
    ),
}


def cache() -> Path:
    """Where files that were fetched are kept: $XDG_CACHE_HOME/diffusion-weights, or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "diffusion-weights"


def locate(name: str, path: str = "", directory: str = "") -> Path:
    """The file of published weights, fetched into `cache()` where it is nowhere.

    Args:
        name: one of `KNOWN`.
        path: a file to take instead, whatever it holds; its checksum is in the identity of what is
            computed with it.
        directory: looked into before the cache.

    Raises:
        ConfigError: there is no such file, it cannot be fetched, or it is another one.
    """
    if path:
        there = Path(path).expanduser()
        if not there.is_file():
            raise ConfigError(f"path={path!r}: there is no such file (weights {name!r})")
        return there
    if name not in KNOWN:
        raise ConfigError(f"weights {name!r}: {nearest(name, KNOWN)}")
    known = KNOWN[name]
    if directory and not Path(directory).expanduser().is_dir():
        raise ConfigError(f"directory={directory!r}: there is no such directory")
    for place in ([Path(directory).expanduser()] if directory else []) + [cache()]:
        there = place / known.file
        if there.is_file():
            _check(known, sha256(there), str(there), "remove it, or take")
            return there
    return _fetch(known, cache() / known.file)


def read(path: Path, convert: Callable[[Mapping[str, np.ndarray]], Params]) -> Params:
    """Parameters from a file of weights; ConfigError names the file and what is wrong with it."""
    try:
        return convert(read_weights(path))
    except (ValueError, OSError) as error:
        problem = str(error)
        raise ConfigError(problem if str(path) in problem else f"{path}: {problem}") from error


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal digits."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache
def _sha256(path: Path, size: int, changed: int) -> str:
    """Read once; a file of another size or time is another one."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(known: Published, digest: str, where: str, advice: str) -> None:
    if not digest.startswith(known.checksum):
        raise ConfigError(
            f"{where}: has sha256 {digest}, and {known.file} has {known.checksum}: it is another "
            f"file, or a part of it; {advice} that of {known.url}"
        )


def _fetch(known: Published, target: Path) -> Path:
    """Into place only once it is complete and the right one."""
    part = target.with_name(f"{target.name}.part-{secrets.token_hex(8)}")
    digest = hashlib.sha256()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(known.url, timeout=_TIMEOUT) as answer, part.open("wb") as file:
            while chunk := answer.read(_CHUNK):
                digest.update(chunk)
                file.write(chunk)
        _check(known, digest.hexdigest(), "what was fetched", "bring")
        os.replace(part, target)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        size = f" ({known.size / 1e6:.0f} MB)" if known.size else ""
        raise ConfigError(
            f"{known.file} is not here and cannot be fetched ({reason}): bring {known.url}{size} "
            f"and put it at {target}, or into a directory that you name, under this name"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return target
