"""What tasks read of a CLIP: fields of records, or made by the frozen network inside the step."""

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import input_pipeline
from input_pipeline.tokenizer import Tokenizer
from training import components, contract, encoder, tokens
from training.components import ConfigError, build
from training.contract import EmbeddingContract, identify
from training.processes import on_first
from training.tasks.clip import CLIPTask
from training.teacher import Teacher
from training.workdir import Workdir

# What a CLIP can tell of an image and its caption.
FIELDS = ("image_embedding", "text_embedding", "text_features", "text_mask", "tokens")
# Name of its parameters in the state.
CLIP = "clip"
# Examples that are read at a time.
_BATCH = 128


class FrozenCLIP(Teacher):
    """The CLIP of a work directory, at its newest checkpoint, as a teacher of embeddings.

    shapes: of one example of each field that is wanted.
    """

    argument = "clip"

    def __init__(self, directory: str, shapes: Mapping[str, tuple[int, ...]]):
        super().__init__(directory)
        self.shapes = dict(shapes)
        # What the fields are made of.
        self.sources = [
            *(["image"] if "image_embedding" in shapes else []),
            *(["tokens"] if shapes.keys() - {"image_embedding"} else []),
        ]

    def check(self, student: Any) -> None:
        """Refuses a CLIP that the student cannot be trained with; see `check_config`."""
        self.check_config(student.config)

    def check_config(self, ours: Any) -> None:
        """Refuses a CLIP whose fields are not those that a config asks for.

        Raises:
            ConfigError: no such run, no checkpoint, or a field that must be the same is another.
        """
        if not isinstance(self.task, CLIPTask):
            raise self._error(f"is a run of task {self.config.task!r}; name one of task 'clip'")
        self._require_checkpoint()
        theirs = self.config
        fields = [name for name in ("image_size", "channels") if "image" in self.sources]
        fields += ["context"] if "tokens" in self.sources else []
        for field in fields:
            if ours.data[field] != theirs.data[field]:
                raise self._error(
                    f"config.data.{field} is {theirs.data[field]!r} there and "
                    f"{ours.data[field]!r} here; it must be CLIP's"
                )
        if "tokens" in self.sources:
            self._check_tokenizer(ours)
        spec = self.task.batch_spec(1)
        batch = {name: spec[name] for name in self.sources}
        made = jax.eval_shape(self.embed, self.abstract, batch)
        for name, shape in self.shapes.items():
            if made[name].shape[1:] != shape:
                raise self._error(
                    f"{name} has shape {list(made[name].shape[1:])}, and config.model is for "
                    f"{list(shape)}; set its dimensions to these"
                )

    def _check_tokenizer(self, ours: Any) -> None:
        """CLIP must read the ids that it was trained on."""
        spec, theirs = ours.data.tokenizer, self.config.data.tokenizer
        if not theirs:
            if spec:
                raise self._error(f"has no tokenizer; config.data.tokenizer = {spec!r} must be ''")
            return
        workdir = Workdir(self.directory)
        call = components.parse(theirs)
        kept = call.arguments if call.name == "file" else {}
        arguments = kept | {"path": os.fspath(workdir.tokenizer)}
        wanted = components.spell(components.Call("file", arguments))
        if spec and components.parse(spec).name == "file":
            given = build(
                input_pipeline.TOKENIZERS,
                spec,
                "config.data.tokenizer",
                context=ours.data.context,
            )
            if given.fingerprint == tokens.read(workdir).fingerprint:
                return
        raise self._error(f"config.data.tokenizer = {spec!r} is not CLIP's own; take {wanted!r}")

    @functools.cached_property
    def contract(self) -> EmbeddingContract:
        """That of its work directory; where it has none yet, it is measured and written there.

        Raises:
            ConfigError: it cannot be measured.
        """
        workdir = Workdir(self.directory)
        if on_first(workdir.contract.exists):
            return EmbeddingContract.read(workdir)
        try:
            return encoder.load(self.directory).contract(self.config.embed.statistics)
        except (ConfigError, OSError) as error:
            raise self._error(
                f"has no {contract.FILE} yet, and it cannot be measured here ({error}); run "
                "--mode=embed there"
            ) from error

    def load(self, mesh: Mesh) -> Any:
        """Its parameters on the mesh, those that its contract is of."""
        params = super().load(mesh)
        self._check_identity(params)
        return params

    def load_encoder(self) -> "encoder.Encoder":
        """The same network for examples that are embedded outside of the step."""
        clip = encoder.load(self.directory)
        self._check_identity(clip.params)
        return clip

    def _check_identity(self, params: Any) -> None:
        found = identify(self.config.model.to_dict(), params)
        if found != self.contract.encoder:
            raise self._error(
                f"its {contract.FILE} is of encoder {self.contract.encoder}, and its newest "
                f"checkpoint (config.sample.ema = {self.config.sample.ema!r}) is {found}: it was "
                "trained on since, or embedded at other parameters; --mode=embed there makes the "
                "contract anew"
            )

    def embed(self, params: Any, batch: Mapping) -> dict[str, Any]:
        """The wanted fields of images and tokens, to be traced; without gradient."""
        made = {}
        # Not the jitted functions: what is traced once for all would not see who reads parameters
        # in this program (`models.functional.read_by`).
        embed_images = self.task.embed_images.__wrapped__
        embed_texts = self.task.embed_texts.__wrapped__
        if "image_embedding" in self.shapes:
            made["image_embedding"] = embed_images(params, jnp.asarray(batch["image"]))
        if {"text_embedding", "text_features"} & self.shapes.keys():
            made["text_embedding"], made["text_features"] = embed_texts(
                params, jnp.asarray(batch["tokens"])
            )
        if "tokens" in self.sources:
            made["tokens"] = jnp.asarray(batch["tokens"])
            made["text_mask"] = self.task.text_mask(made["tokens"])
        return {name: jax.lax.stop_gradient(made[name]) for name in self.shapes}


class Embeddings:
    """The fields of a task's batches that a CLIP makes.

    A task holds one and adds `spec` to what its batches have, `teachers` to its own, and in its
    loss begins with `batch, state = self.embeddings.fill(batch, state)`. As its attribute
    `embeddings` the loop finds it and keeps the contract with the run.

    Attributes:
        shapes: of one example of each field.
        teachers: the frozen CLIP under 'clip', or none.
    """

    def __init__(
        self,
        config: Any,
        clip: str,
        shapes: Mapping[str, tuple[int, ...]],
    ):
        """What is wanted.

        Args:
            config: of the run.
            clip: work directory of a run of task 'clip', which makes the fields of the images and
                the captions of `data.source`, inside the step; '': the source has them.
            shapes: of one example of each field, names of `FIELDS`.
        """
        if unknown := shapes.keys() - set(FIELDS):
            raise ValueError(f"shapes: {sorted(unknown)} are none of {FIELDS}")
        self.config, self.shapes = config, dict(shapes)
        self._clip = FrozenCLIP(clip, shapes) if clip else None
        self.teachers = {CLIP: self._clip} if self._clip else {}

    def spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Fields that a batch from the loader must have, with shapes and types."""
        data = self.config.data
        shapes = dict(self.shapes)
        if self._clip:
            shapes = {"tokens": (data.context,)} if "tokens" in self._clip.sources else {}
        if self._clip and "image" in self._clip.sources:
            shapes["image"] = (data.image_size, data.image_size, data.channels)
        types = {"image": jnp.uint8, "tokens": jnp.int32, "text_mask": jnp.bool_}
        return {
            name: jax.ShapeDtypeStruct((batch_size, *shape), types.get(name, jnp.float32))
            for name, shape in shapes.items()
        }

    def fill(self, batch: Mapping, state: Mapping) -> tuple[dict, dict]:
        """(a batch with all fields, the state without CLIP), to be traced.

        state: as the loss is given it, with the parameters of `teachers`.
        """
        filled = dict(batch)
        if self._clip:
            filled |= self._clip.embed(state[CLIP], batch)
        return filled, {name: value for name, value in state.items() if name != CLIP}

    @property
    def of_source(self) -> tuple[str, ...]:
        """Fields that an example of the source must have for `complete`."""
        if not self._clip:
            return tuple(self.shapes)
        words = "caption" if self.config.data.tokenizer else "tokens"
        return tuple(words if name == "tokens" else name for name in self._clip.sources)

    def complete(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Examples of the source with all fields, made outside of the step."""
        if not self._clip:
            return dict(rows)
        clip = self._encoder
        ids = clip.tokenizer(rows["caption"]) if "caption" in rows else rows.get("tokens")
        return dict(rows) | clip.fields(tuple(self.shapes), rows.get("image"), ids)

    @functools.cached_property
    def _encoder(self) -> "encoder.Encoder":
        self._clip.check_config(self.config)
        return self._clip.load_encoder()

    def read(
        self, count: int, split: str = "", fields: Sequence[str] = ()
    ) -> dict[str, np.ndarray]:
        """Fields of the first `count` examples of `data.source`; all where it has fewer.

        split: another split of the source.
        fields: by default all of `shapes`; others are those of the source, as 'image' at
            `data.image_size`.

        Raises:
            ConfigError: the source lacks one of the fields.
        """
        fields = tuple(fields) or tuple(self.shapes)
        if not self._clip:
            return _joined(_examples(self.config, fields, count, split))
        own = [name for name in fields if name not in FIELDS]
        made = [name for name in fields if name in FIELDS]
        asked = list(dict.fromkeys([*self._clip.sources, *own]))
        # It may be first needed while a program is traced.
        with jax.ensure_compile_time_eval():
            clip = self._encoder
            return _joined(
                clip.fields(made, part.get("image"), part.get("tokens"))
                | {name: part[name] for name in own}
                for part in _examples(self.config, asked, count, split, clip.tokenizer)
            )

    def contract(self) -> EmbeddingContract | None:
        """What the embeddings are; None where nobody has told."""
        if self._clip:
            return self._clip.contract
        return contract.of_source(self.config.data.source)


def _examples(
    config: Any,
    fields: Sequence[str],
    count: int,
    split: str,
    tokenizer: Tokenizer | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """The first examples of `data.source`, or of its other split, in parts."""
    where, name = "config.data.source", config.data.source
    if split:
        name = components.changed(name, split=split)
    source = build(input_pipeline.SOURCES, name, where)
    count = min(count, len(source))
    try:
        loader = input_pipeline.make_loader(
            source,
            image_size=config.data.image_size,
            channels=config.data.channels,
            batch_size=min(count, _BATCH),
            seed=0,
            shuffle=False,
            fields=tuple(fields),
            epochs=1,
            process_index=0,
            process_count=1,
            on_bad_image=config.data.on_bad_image,
            tokenizer=tokenizer,
        )
    except ValueError as error:
        raise ConfigError(f"{where} = {name!r}: {error}") from error
    with contextlib.closing(loader):
        for first in range(0, count, _BATCH):
            batch = next(loader)
            yield {field: rows[: count - first] for field, rows in batch.items()}


def _joined(parts: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    parts = list(parts)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
