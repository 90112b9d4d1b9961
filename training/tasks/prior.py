"""The diffusion prior: image embeddings by denoising (Ramesh et al. 2022, section 2.2)."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

import diffusion
from models.caption import NO_TEXT
from training import guidance
from training.components import ConfigError, build
from training.tasks.caption_prior import CaptionPrior

FIXED = (("loss", "simple"), ("variance", "fixed"), ("uncertainty_channels", 0))


class PriorTask(CaptionPrior):
    """Trains a network to denoise embeddings, and samples as `config.sample` says.

    Of `config.diffusion` it reads schedule, parameterization (the paper's is 'x0'), weighting and
    time sampler.

    Attributes:
        schedule, parameterization: of `diffusion`.
        objective: `diffusion.Objective`.
        candidates: samples of a caption, of which the one of largest dot product with the text
            embedding is given (the paper: 2).
    """

    networks = ("prior",)
    num_classes = 0
    learned_variance = False

    def __init__(
        self,
        config: ConfigDict,
        scale: float = 0.0,
        normalize: bool = True,
        caption_dropout: float = 0.1,
        candidates: int = 2,
        clip: str = "",
    ):
        """Settings.

        scale: 0 is the root of the dimension; the paper's is 17.2 for vectors of length 1.
        clip: the work directory of a CLIP that embeds images and captions; '': the data do.
        """
        super().__init__(config, scale, normalize, caption_dropout, clip)
        if candidates < 1:
            raise ConfigError(f"config.task = {config.task!r}: candidates must be 1 or more")
        self.candidates = candidates
        settings = config.diffusion
        for name, wanted in FIXED:
            if settings[name] != wanted:
                raise ConfigError(
                    f"config.diffusion.{name} = {settings[name]!r}: must be {wanted!r} with task "
                    "'prior'"
                )
        if config.sample.clip != "none":
            raise ConfigError(
                f"config.sample.clip = {config.sample.clip!r}: is for images in [-1, 1]; "
                "embeddings are beyond it, take 'none'"
            )
        parts = {
            field: build(registry, settings[field], f"config.diffusion.{field}")
            for field, registry in (
                ("schedule", diffusion.SCHEDULES),
                ("parameterization", diffusion.PARAMETERIZATIONS),
                ("weighting", diffusion.WEIGHTINGS),
                ("time_sampler", diffusion.TIME_SAMPLERS),
            )
        }
        self.schedule, self.parameterization = parts["schedule"], parts["parameterization"]
        if self.schedule.init(jax.random.key(0)):
            raise ConfigError(
                f"config.diffusion.schedule = {settings.schedule!r}: is learned; task 'prior' "
                "needs a fixed one"
            )
        try:
            self.objective = diffusion.Objective(**parts)
        except ValueError as error:
            raise ConfigError(f"config.diffusion: {error}") from error

    def init_state(self) -> dict:
        """The time sampler's memory."""
        return self.objective.init_state()

    def split(self, params: Mapping) -> tuple[Mapping, dict]:
        """(the network's parameters, what the objective learned: nothing)."""
        return params, {}

    def examples(self, batch: Mapping) -> tuple[Float[Array, "batch dim"], dict]:
        """(what is modelled, what the network is told of it); no caption is withheld."""
        return self.to_model(jnp.asarray(batch["image_embedding"])), self.condition(batch)

    def loss(
        self, params, state: dict, batch: Mapping, rng: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], dict]]:
        """Mean of the objective over the batch."""
        batch, state = self.embeddings.fill(batch, state)
        noise_rng, drop_rng = jax.random.split(rng)
        embeddings, condition = self.examples(batch)
        result = self.objective(
            functools.partial(self.network.apply, params),
            embeddings,
            self.dropped(condition, drop_rng),
            noise_rng,
            None,
            state,
        )
        metrics = {name: value.mean() for name, value in result.metrics.items()}
        return result.loss.mean(), (metrics, result.state)

    @functools.cached_property
    def _sampler(self) -> tuple[diffusion.solvers.Solver, Any, tuple]:
        """(solver, its plan, guidances) of `config.sample`."""
        settings = self.config.sample
        solver = build(diffusion.SOLVERS, settings.solver, "config.sample.solver")
        make_grid = build(diffusion.GRIDS, settings.grid, "config.sample.grid")
        try:
            grid = make_grid(self.schedule, settings.steps, settings.last_step)
            plan = solver.plan(grid, self.schedule)
        except ValueError as error:
            raise ConfigError(f"config.sample: {error}") from error
        guidances = guidance.build_all(settings.guidance)
        guidance_for_captions(settings.guidance, self.knows_null)
        return solver, jax.tree.map(np.float32, plan), guidances

    def denoiser(self, params: Any) -> Callable[..., diffusion.Prediction]:
        """Unguided; its condition is that of `condition`."""
        return guidance.denoiser_of(self, params)

    def draw(
        self, params: Any, condition: Mapping, key: Key[Array, ""], indices: Int[Array, " batch"]
    ) -> Float[Array, "batch dim"]:
        """The best of `candidates` samples by the solver and the guidance of `config.sample`.

        Candidate c of sample i has the key fold_in(key, candidates i + c).
        """
        solver, plan, guidances = self._sampler
        null = {NO_TEXT: np.bool_(True)} if self.knows_null else None
        denoiser = diffusion.guide(self.denoiser(params), guidances, self.parameterization, null)
        count, n = len(indices), self.candidates
        told = {
            name: jnp.repeat(value, n, axis=0) for name, value in self.condition(condition).items()
        }
        numbers = (n * indices[:, None] + jnp.arange(n, dtype=indices.dtype)).reshape(-1)
        keys = diffusion.sample_keys(key, numbers)
        x = diffusion.sample(denoiser, solver, plan, keys, (self.dim,), told)
        drawn = self.from_model(x).reshape(count, n, self.dim)
        text = self.direction(jnp.asarray(condition["text_embedding"]))
        return best(drawn, text)


def best(
    candidates: Float[Array, "batch n dim"], text: Float[Array, "batch dim"]
) -> Float[Array, "batch dim"]:
    """Of each caption's candidates the one with the largest dot product with its embedding."""
    choice = jnp.einsum("bnd,bd->bn", candidates, text).argmax(1)
    return jnp.take_along_axis(candidates, choice[:, None, None], axis=1)[:, 0]


def guidance_for_captions(names: tuple[str, ...], knows_null: bool) -> None:
    """Refuses guidances that need labels, another network, or attention to replace.

    Raises:
        ConfigError: one line with the guidance and the reason.
    """
    for name, item in zip(names, guidance.build_all(names), strict=True):
        where = f"{guidance.FIELD} = {name!r}"
        unfit = item.companion or getattr(item, "places", ())
        if unfit or getattr(item, "negative", None) is not None:
            raise ConfigError(
                f"{where}: asks for labels, another network or attention maps, which priors have "
                "not; take classifier_free(scale=...)"
            )
        if item.needs_null and not knows_null:
            raise ConfigError(
                f"{where}: needs a network that knows 'no caption'; set config.model.null_text = "
                "True in training, or take ()"
            )
