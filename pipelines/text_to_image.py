"""Pictures of captions by the stages of a stack: CLIP's text tower, prior, decoder, upsamplers.

Ramesh et al. 2022, figure 2. Sample i is a function of the stages, the seed, its number i and its
own caption, whoever else is in the batch.
"""

import contextlib
import copy
import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

import diffusion
from pipelines.sampling import check_trained
from training import checkpoints, encoder, stack, tasks
from training.components import ConfigError
from training.config import freeze
from training.contract import COMPUTATION, EmbeddingContract, check_same, identify
from training.mesh import batch_sharding, batch_ways, make_mesh
from training.root import absolute, unfill
from training.tasks.caption_prior import CaptionPrior
from training.tasks.decoder import DecoderTask
from training.tasks.regression_prior import text_as_image
from training.tasks.super_resolution import SuperResolutionTask
from training.workdir import Workdir

log = logging.getLogger(__name__)

# Each stage draws its noise from a key of its own: the seed's, folded with one of these.
_PRIOR, _DECODER, _UPSAMPLERS = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Stage:
    """A trained stage at one checkpoint.

    Attributes:
        name: in the stack.
        workdir: of its run.
        task: its task, with the sampler of the stack's config.
        params: its parameters.
        identity: all that decides what it draws, as JSON values.
    """

    name: str
    workdir: Workdir
    task: Any
    params: Any
    identity: dict[str, Any]


class TextToImage:
    """The stages that `config.generate` names, loaded.

    Attributes:
        clip: `training.encoder.Encoder`.
        stages: the others, in the order in which they are run.
        identity: all that decides what is drawn, as JSON values.
    """

    def __init__(self, config: Any, root: str | os.PathLike[str]):
        """Loads the stages.

        Raises:
            ConfigError: a stage is not trained, of another task than its place asks for, of
                another CLIP than the others, or of a size that does not go with the one before.
        """
        generate = config.generate
        configs, name = stack.stages(config, root), stack.clip_of(config)
        self._mesh = make_mesh(**configs[generate.decoder].mesh)
        workdir = _trained(name, stack.directory(root, name))
        with _naming(name):
            check_trained(workdir, configs[name])
            settings = configs[name].sample
            model = configs[name].model
            computed = {field: model[field] for field in COMPUTATION}
            self.clip = encoder.load(workdir, settings.ema, settings.checkpoint, computed)
        _warn_unfinished(name, configs[name], self.clip.step)
        if self.clip.tokenizer is None:
            raise ConfigError(f"{os.fspath(workdir)}: this CLIP has no tokenizer for prompts")

        def stage(name: str, kind: type, wanted: str) -> Stage:
            return _load(name, configs[name], root, self._mesh, kind, wanted)

        self._stage = stage
        prior = self._prior_stage(generate.prior)
        self._decoder = stage(generate.decoder, DecoderTask, "'decoder'")
        self._upsamplers = [
            stage(name, SuperResolutionTask, "'super_resolution'") for name in generate.upsamplers
        ]
        self._contract = EmbeddingContract.read(self.clip.workdir)
        self._take(prior)
        self._check_clip()
        self._check_sizes()

    def with_prior(self, prior: str | Stage) -> "TextToImage":
        """The same decoder and upsamplers after another prior; they are not loaded again.

        prior: name of a stage; '': none, the text embedding; or what acts as a loaded stage.

        Raises:
            ConfigError: it is not trained, no prior, or of another CLIP.
        """
        other = copy.copy(self)
        other._take(self._prior_stage(prior) if isinstance(prior, str) else prior)
        return other

    def _prior_stage(self, name: str) -> Stage | None:
        return self._stage(name, CaptionPrior, "a prior") if name else None

    def _take(self, prior: Stage | None) -> None:
        self._prior = prior
        self.stages = [s for s in (prior, self._decoder, *self._upsamplers) if s is not None]
        self._check_contracts()
        self.identity = {
            "clip": {
                "checkpoint": self.clip.step,
                "encoder": self._contract.encoder,
                "model": self.clip.config.model.to_dict(),
            },
            **{stage.name: stage.identity for stage in self.stages},
        }

    @property
    def prior(self) -> Stage | None:
        """The stage that draws image embeddings; None: the text embedding is taken for one."""
        return self._prior

    def _check_clip(self) -> None:
        """Once, when CLIP is loaded: all of its parameters are read."""
        found = identify(self.clip.config.model.to_dict(), self.clip.params)
        if found != self._contract.encoder:
            raise ConfigError(
                f"clip {os.fspath(self.clip.workdir)}: its contract is of encoder "
                f"{self._contract.encoder}, which prior and decoder learned from, and its "
                f"checkpoint of step {self.clip.step} is {found}; take that checkpoint again, or "
                "embed (--mode=embed there) and train them anew"
            )

    def _check_contracts(self) -> None:
        of_clip = f"clip {os.fspath(self.clip.workdir)}"
        kept = []
        for kind, stage in (("prior", self._prior), ("decoder", self._decoder)):
            if stage is not None:
                kept.append((f"{kind} {os.fspath(stage.workdir)}", stage))
        contracts = [(label, EmbeddingContract.read(stage.workdir)) for label, stage in kept]
        if len(contracts) == 2:
            (prior, its), (decoder, theirs) = contracts
            check_same(its, theirs, (prior, decoder))
        check_same(self._contract, contracts[-1][1], (of_clip, contracts[-1][0]))

    def _check_sizes(self) -> None:
        size, before = self._decoder.task.image_shape[0], self._decoder.name
        for stage in self._upsamplers:
            if stage.task.low != size:
                raise ConfigError(
                    f"config.generate.upsamplers: {stage.name!r} enlarges images of "
                    f"{stage.task.low} px, and those of {before!r} have {size} px"
                )
            size, before = stage.task.image_shape[0], stage.name

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        return self.stages[-1].task.image_shape[0]

    @property
    def batch_ways(self) -> int:
        """Of how many captions, at least, a batch has to be a multiple."""
        return batch_ways(self._mesh)

    def __call__(
        self, captions: Sequence[str], seed: int, indices: Int[np.ndarray, " batch"]
    ) -> UInt8[jax.Array, "batch size size channels"]:
        """Pictures of captions, sample numbers given; a multiple of `batch_ways`."""
        return self.decode(captions, self.embed(captions, seed, indices), seed, indices)

    def embed(
        self, captions: Sequence[str], seed: int, indices: Int[np.ndarray, " batch"]
    ) -> Float[jax.Array, "batch embedding"]:
        """Image embeddings of captions, drawn from the prior."""
        told, key = self._told(captions), jax.random.fold_in(jax.random.key(seed), _PRIOR)
        if self._prior is None:
            return text_as_image(None, told, key, self.place(indices))
        return self._prior.task.sample(self._prior.params, told, key, self.place(indices))

    def decode(
        self,
        captions: Sequence[str],
        embeddings: Float[jax.Array | np.ndarray, "batch embedding"],
        seed: int,
        indices: Int[np.ndarray, " batch"],
    ) -> UInt8[jax.Array, "batch size size channels"]:
        """Pictures of image embeddings and captions, by decoder and upsamplers."""
        key, numbers = jax.random.key(seed), self.place(indices)
        told = self._told(captions) | {"image_embedding": self.place(embeddings)}
        decoder = self._decoder
        images = decoder.task.sample(
            decoder.params, told, jax.random.fold_in(key, _DECODER), numbers
        )
        for k, stage in enumerate(self._upsamplers, start=_UPSAMPLERS):
            images = stage.task.sample(stage.params, images, jax.random.fold_in(key, k), numbers)
        return diffusion.to_uint8(images)

    def _told(self, captions: Sequence[str]) -> dict[str, jax.Array]:
        """What CLIP's text tower says of captions, on the mesh."""
        names = ("tokens", "text_mask", "text_embedding", "text_features")
        told = self.clip.fields(names, None, self.clip.tokenizer(captions))
        return {name: self.place(array) for name, array in told.items()}

    def place(self, array: jax.Array | np.ndarray) -> jax.Array:
        """An array with a row for each caption, split over the devices."""
        rows = batch_sharding(self._mesh)
        if isinstance(array, np.ndarray):
            # Each process gives its own rows. `device_put` would want all of them to the bit, and
            # what each has computed for itself may be rounded in another way.
            return jax.make_array_from_callback(array.shape, rows, lambda index: array[index])
        return jax.device_put(array, rows)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Warns of what is left out of prompts that are longer than the context.

        Raises:
            ConfigError: a prompt is empty.
        """
        for prompt in prompts:
            if not prompt.strip():
                raise ConfigError(
                    "config.generate.prompts: a prompt is empty; say what is to be seen"
                )
            told = self.clip.tokenizer.prompt(prompt)
            if told.cut:
                log.warning(
                    "prompt %r is longer than the %d tokens that the stages read: left out is %r, "
                    "after %r",
                    prompt,
                    self.clip.tokenizer.context,
                    told.cut.strip(),
                    told.kept.strip(),
                )


def _trained(name: str, directory: os.PathLike[str]) -> Workdir:
    workdir = Workdir(directory)
    if not checkpoints.steps(workdir.checkpoints):
        raise ConfigError(
            f"config.stages.{name}: is not trained, {os.fspath(workdir)} has no checkpoint; "
            f"train it (--mode=train --config.only={name})"
        )
    return workdir


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Errors within it name the fields of a stage as those of the stack."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(stack.in_stage(name, str(error))) from error


def _warn_unfinished(name: str, config: Any, step: int) -> None:
    """Says that a stage is drawn with before its training has ended, unless that was asked for."""
    if step < config.train.steps and config.sample.checkpoint < 0:
        log.warning(
            "config.stages.%s: at step %d of %d; --mode=train goes on",
            name,
            step,
            config.train.steps,
        )


def _load(name: str, config: Any, root: Any, mesh: Any, kind: type, wanted: str) -> Stage:
    workdir = _trained(name, stack.directory(root, name))
    config = freeze(config)
    with _naming(name):
        check_trained(workdir, config)
        task = tasks.make_task(config)
    if not isinstance(task, kind):
        raise ConfigError(
            f"config.generate: the stage {name!r} is of task {config.task!r}, and {wanted} is "
            "needed in its place"
        )
    settings = config.sample
    with _naming(name):
        params, step = checkpoints.restore_for_sampling(
            workdir.checkpoints,
            settings.ema,
            task.init,
            mesh,
            settings.checkpoint,
            averages=workdir.read_config().ema,
        )
    _warn_unfinished(name, config, step)
    fields = config.to_dict()
    drawn = {k: v for k, v in fields["sample"].items() if k not in ("count", "batch_size", "seed")}
    identity = {
        "checkpoint": step,
        "task": fields["task"],
        "sample": drawn,
        "model": fields["model"],
        "diffusion": fields["diffusion"],
    }
    # The same for a stack that was moved.
    return Stage(name, workdir, task, params, unfill(identity, absolute(root)))
