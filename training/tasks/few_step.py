"""What the tasks of few-step generation share: a teacher, a start from it, a count of steps."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

import diffusion
from diffusion.denoiser import Denoiser, Network
from diffusion.guidance import classifier_free
from training import teacher as teachers
from training.components import ConfigError
from training.tasks.diffusion import OBJECTIVE, DiffusionTask

Loss = tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], dict]]


class FewStepTask(DiffusionTask):
    """A diffusion task with a loss of its own, and perhaps a teacher.

    With a teacher the student starts from its weights, and `loss` finds them in its state.
    """

    # Whether the loss uses config.diffusion.uncertainty_channels.
    takes_uncertainty = False

    def __init__(self, config: ConfigDict, teacher: str = "", guidance: float = 1.0):
        super().__init__(config)
        self.guidance = guidance
        self.teachers = {"teacher": teachers.Teacher(teacher)} if teacher else {}
        settings = config.diffusion
        for field, value, wanted in (
            ("loss", settings.loss, "simple"),
            ("variance", settings.variance, "fixed"),
            ("uncertainty_channels", settings.uncertainty_channels, 0),
        ):
            if value != wanted and not (self.takes_uncertainty and wanted == 0):
                raise self.error(f"config.diffusion.{field} must be {wanted!r}, not {value!r}")
        if jax.tree.leaves(jax.eval_shape(self.schedule.init, jax.random.key(0))):
            raise self.error(
                f"config.diffusion.schedule = {settings.schedule!r} is learned; take one that is "
                "not, or the teacher's as it ended"
            )

    def error(self, message: str) -> ConfigError:
        """A mistake in what `config.task` asks for."""
        return ConfigError(f"config.task = {self.config.task!r}: {message}")

    def require_flow(self) -> None:
        """Refuses a schedule that is no straight path of continuous time."""
        schedule = self.schedule
        if schedule.scaling != "flow" or abs(schedule.sigma(np.float64(0.3)) - 0.3) > 1e-9:
            raise self.error(
                "works on straight paths whose noise is their time; set config.diffusion.schedule "
                f"= 'rectified_flow()' without a shift, not {self.config.diffusion.schedule!r}"
            )

    def require_forward_derivatives(self) -> None:
        """Refuses an attention kernel that has none."""
        kernel = self.config.model.get("attention", "xla")
        if kernel != "xla":
            raise self.error(
                f"needs forward derivatives, which config.model.attention = {kernel!r} has not; "
                "take 'xla'"
            )

    def check_teacher(self, teacher: Any) -> None:
        """Refuses a teacher whose guidance or weights do not fit the student."""
        told = "guidance" in teacher.task.scalars
        if self.guidance != 1.0 and not told and teacher.task.null is None:
            raise self.error(
                f"guidance={self.guidance} needs a teacher that knows 'no label' "
                "(config.model.null_class = True in its training)"
            )
        if "step" in teacher.task.scalars:
            raise self.error("the teacher is a flow map; take a diffusion model")
        ours = _flat(jax.eval_shape(self.network.init, jax.random.key(0)))
        theirs = _flat(teacher.task.split(teacher.abstract)[0])
        new = [name for name in ours if name not in theirs and not name.startswith("['scalars']")]
        other = [n for n in theirs if n in ours and ours[n].shape != theirs[n].shape]
        if new or other:
            raise self.error(
                f"the teacher's network is another: it has no {new[0]}"
                if new
                else f"the teacher's network is another: {other[0]} has shape "
                f"{theirs[other[0]].shape} there and {ours[other[0]].shape} here"
            )

    def start(self, params: dict, frozen: Mapping) -> dict:
        """The teacher's weights where the student has the same; the rest as it was drawn."""
        theirs = _flat(self.teachers["teacher"].task.split(frozen["teacher"])[0])
        leaves, tree = jax.tree_util.tree_flatten_with_path(
            {name: value for name, value in params.items() if name != OBJECTIVE}
        )
        merged = tree.unflatten([theirs.get(jax.tree_util.keystr(p), v) for p, v in leaves])
        return merged | {name: value for name, value in params.items() if name == OBJECTIVE}

    def steps_done(self, state: Mapping) -> Array:
        """Training steps of a state that counts calls of the loss, one a microbatch, in 'calls'."""
        return state["calls"] // self.config.train.accumulate

    def sigma_range(self) -> tuple[float, float]:
        """Least and largest sigma / alpha that a network is asked about."""
        with np.errstate(over="ignore"):
            low, high = np.exp(-0.5 * self.schedule.logsnr(np.array(self.schedule.t_range)))
        return float(low), float(high)

    def applied(self, params: Mapping, dropout_rng: Key[Array, ""]) -> Network:
        """The student's network at these parameters, with dropout."""
        weights, _ = self.split(params)

        def network(x, time, condition):
            return self.network.apply(weights, x, time, condition, dropout_key=dropout_rng)

        return network

    def student(self, params: Mapping, dropout_rng: Key[Array, ""]) -> Denoiser:
        """The student as a denoiser."""
        network = self.applied(params, dropout_rng)
        return diffusion.denoiser(network, self.schedule, self.parameterization)

    def teacher(
        self, state: Mapping, guidance: Float[Array, " batch"] | float | None = None
    ) -> Denoiser:
        """The teacher as a denoiser, guided by `guidance`, or as the task is set."""
        task = self.teachers["teacher"].task
        weights, learned = task.split(state["teacher"])
        schedule = task.schedule.bind(learned.get("schedule", {}))
        scale = self.guidance if guidance is None else guidance

        def network(x, time, condition):
            return task.network.apply(weights, x, time, condition)

        plain = diffusion.denoiser(network, schedule, task.parameterization)

        def denoise(x, level, condition):
            if "guidance" in task.scalars:
                told = {"guidance": jnp.broadcast_to(jnp.float32(scale), x.shape[:1])}
                return plain(x, level, (condition or {}) | told)
            if isinstance(scale, int | float) and scale == 1.0:
                return plain(x, level, condition)
            guided = diffusion.guide(
                plain,
                [dataclasses.replace(classifier_free(w=0.0), extra=scale - 1.0)],
                task.parameterization,
                task.null,
            )
            return guided(x, level, condition)

        return denoise

    def mean_velocity(
        self, network: Network, condition: dict | None
    ) -> Callable[[Array, Array, Array], Array]:
        """u(x, t, h) = eps - x0 of a network that is told the step h."""
        denoise = diffusion.denoiser(network, self.schedule, self.parameterization)

        def u(x, t, h):
            told = (condition or {}) | {"step": h}
            prediction = denoise(x, self.schedule.level(t), told)
            return prediction.eps - prediction.x0

        return u


def _flat(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
