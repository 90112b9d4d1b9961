"""What the embeddings of an encoder are, so that what was trained on others is not mixed in."""

import dataclasses
import hashlib
import json
import os
from typing import Any

import jax
import numpy as np
from etils import epath

from training import components
from training.components import ConfigError
from training.files import atomic_write
from training.processes import whole

FILE = "contract.json"
# Fields of config.model that change how a network is computed, not what it is.
COMPUTATION = ("attention", "remat", "dtype")


@dataclasses.dataclass(frozen=True)
class EmbeddingContract:
    """What an image embedding is; whoever is trained on embeddings keeps that of them.

    Attributes:
        encoder: published name, or digest of the network and its parameters (`identify`).
        dimension: of an embedding.
        normalized: whether embeddings have length 1.
        scale: what makes a coordinate of size 1; a prior has a scale of its own.
        mean, std: of each coordinate over training images, before the scale.
        null: the embedding that stands for "no image"; a decoder has one of its own.
    """

    encoder: str
    dimension: int
    normalized: bool
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    null: tuple[float, ...]

    def __post_init__(self):
        for name in ("mean", "std", "null"):
            if len(getattr(self, name)) != self.dimension:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} numbers, and dimension is "
                    f"{self.dimension}"
                )

    def write(self, directory: epath.PathLike) -> None:
        """Store it as contract.json there, on process 0."""
        if jax.process_index() == 0:
            data = json.dumps(dataclasses.asdict(self)) + "\n"
            atomic_write(epath.Path(directory) / FILE, data.encode())

    @classmethod
    def read(cls, directory: epath.PathLike) -> "EmbeddingContract":
        """The contract of a work directory, or of one with embeddings.

        Raises:
            ConfigError: there is none, or it is none of this version.
        """
        path = epath.Path(directory) / FILE
        if not path.exists():
            raise ConfigError(
                f"{path}: there is no such file; --mode=embed writes it for a run of task 'clip'"
            )
        try:
            stored = json.loads(path.read_text())
            return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}: is no embedding contract ({error})") from error

    def __str__(self) -> str:
        kind = "normalized" if self.normalized else "not normalized"
        return f"encoder {self.encoder} ({self.dimension} numbers, {kind}, scale {self.scale:.6g})"


def check_same(ours: EmbeddingContract, theirs: EmbeddingContract, names: tuple[str, str]) -> None:
    """Refuses to join what was trained on other embeddings.

    Args:
        ours, theirs: the contracts of both.
        names: of what has them, such as 'prior runs/prior' and 'decoder runs/decoder'.

    Raises:
        ConfigError: one line with both contracts and the fields that differ.
    """
    different = [
        field.name
        for field in dataclasses.fields(ours)
        if getattr(ours, field.name) != getattr(theirs, field.name)
    ]
    if different:
        raise ConfigError(
            f"{names[0]} is of {ours}, {names[1]} is of {theirs}: they cannot go together, "
            f"different are {', '.join(different)}"
        )


def of_source(string: str) -> EmbeddingContract | None:
    """The contract beside the records of a `data.source`; None where none is there.

    Raises:
        ConfigError: records that it mixes are of different ones.
    """
    found = {}
    for path in _records(components.parse(string)):
        directory = epath.Path(path).expanduser()
        if (directory / FILE).exists():
            found[path] = EmbeddingContract.read(directory)
    for path, each in found.items():
        first = next(iter(found))
        check_same(found[first], each, (f"records {first}", f"records {path}"))
    return next(iter(found.values()), None)


def _records(call: components.Call) -> list[str]:
    """Paths of all records in a source."""
    inner = [
        item
        for value in call.arguments.values()
        for item in (value if isinstance(value, tuple) else (value,))
        if isinstance(item, components.Call)
    ]
    own = [call.arguments["path"]] if call.name == "records" else []
    return own + [path for each in inner for path in _records(each)]


def check_kept(embeddings: Any, workdir: epath.PathLike) -> EmbeddingContract | None:
    """The contract of what a task reads, the same that the run has kept, if it has one.

    embeddings: `training.frozen_clip.Embeddings` of the task.

    Raises:
        ConfigError: the run was trained on other embeddings.
    """
    now, kept = embeddings.contract(), epath.Path(workdir) / FILE
    if now is not None and kept.exists():
        names = (f"the run in {os.fspath(kept.parent)}", "its config.task or data.source now")
        check_same(EmbeddingContract.read(kept.parent), now, names)
    return now


def keep(embeddings: Any, workdir: epath.PathLike) -> None:
    """Stores it with a run that starts; see `check_kept`."""
    now = check_kept(embeddings, workdir)
    if now is not None:
        now.write(workdir)


def identify(model: dict[str, Any], params: Any) -> str:
    """Digest of a network's fields and its parameters, the same on every layout of devices."""
    fields = {name: value for name, value in model.items() if name not in COMPUTATION}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        numbers = leaf if isinstance(leaf, np.ndarray) else whole(leaf)
        digest.update(np.ascontiguousarray(numbers).tobytes())
    return digest.hexdigest()[:16]
