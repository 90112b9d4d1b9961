"""Shortcut models: steps of any power of two, each taught by two of half its size (Frans 2024)."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from diffusion.flow_map import shortcut_target
from diffusion.gaussian import q_sample
from diffusion.levels import expand_like
from diffusion.objective import mean_per_example
from models import Network
from training.tasks.few_step import FewStepTask, Loss


class ShortcutTask(FewStepTask):
    """Flow matching at the smallest step, self-consistency at all larger ones.

    steps: number of the smallest steps along the path, a power of two. The network is told log2 of
        the number of steps: 7 at 128, where it is taught by data, down to 0 for a single one.
    share: part of the batch that is taught by two steps (the paper: a quarter, its code an eighth).
    average: name of the average in config.ema that takes these two steps.
    clip: bound of the point between the steps and of the target (the code: 4); 0: none.

    Sampled by flow_map() in 1, 2, 4, ... steps of equal length (grid 'uniform').
    """

    scalars = ("step",)

    def __init__(
        self,
        config: ConfigDict,
        steps: int = 128,
        share: float = 0.125,
        average: str = "default",
        clip: float = 4.0,
    ):
        super().__init__(config)
        self.require_flow()
        if steps < 2 or steps & (steps - 1):
            raise self.error(f"steps={steps} must be a power of two, at least 2")
        if not 0.0 < share < 1.0 or clip < 0.0:
            raise self.error("share must be inside (0, 1), clip 0 or more")
        if average not in config.ema:
            raise self.error(f"average={average!r} is not in config.ema: {', '.join(config.ema)}")
        self.average, self.share, self.clip = average, share, clip
        self.doublings = int(math.log2(steps))
        self.longest = self.schedule.t_range[1]
        self.network = self.network._replace(apply=_told_doublings(self.network, self))

    def loss(self, params, state: dict, batch: Mapping, rng: Key[Array, ""]) -> Loss:
        """Mean squared error of the velocity, on both parts of the batch."""
        keys = jax.random.split(rng, 7)
        x0, condition = self.examples(batch, keys[0], keys[1])
        count = len(x0)
        taught = max(1, round(self.share * count))
        finest = 2**self.doublings
        # Steps of length longest / 2^k for the first `taught` examples; the others' length is 0.
        k = jax.random.randint(keys[2], (count,), 0, self.doublings)
        pieces = jnp.where(jnp.arange(count) < taught, 2.0**k, float(finest))
        whole = jnp.floor(jax.random.uniform(keys[3], (count,)) * pieces)
        t = self.longest * (1.0 - whole / pieces)
        h = jnp.where(jnp.arange(count) < taught, self.longest / pieces, 0.0)
        eps = jax.random.normal(keys[4], x0.shape)
        z = q_sample(x0, eps, self.schedule.level(t))

        def first(tree):
            return jax.tree.map(lambda leaf: leaf[:taught], tree)

        weights, _ = self.split(state["average"])
        average = self.mean_velocity(
            lambda x, time, told: self.network.apply(weights, x, time, told), first(condition)
        )
        target = shortcut_target(average, *first((z, t, h)), self.clip)
        target = jnp.concatenate([target, (eps - x0)[taught:]])
        u = self.mean_velocity(self.applied(params, keys[5]), condition)(z, t, h)
        mse = mean_per_example((u - target) ** 2)
        steps = expand_like(jnp.arange(count) < taught, mse)
        metrics = {
            "mse_flow": jnp.where(steps, 0.0, mse).sum() / (count - taught),
            "mse_shortcut": jnp.where(steps, mse, 0.0).sum() / taught,
        }
        return mse.mean(), (metrics, {})

    def init_state(self) -> dict:
        """Nothing: the average is the train state's."""
        return {}


def _told_doublings(network: Network, task: ShortcutTask):
    """The network's call, told -log2 of the step as a part of the path, at most `doublings`."""

    def apply(params, x, time, condition, **kwargs):
        part = condition["step"] / task.longest
        doublings = -jnp.log2(jnp.maximum(part, 2.0**-task.doublings))
        return network.apply(params, x, time, condition | {"step": doublings}, **kwargs)

    return apply
