"""What a guidance is, and the one batched call that serves all of them."""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from diffusion.denoiser import Condition, Denoiser, Prediction
from diffusion.levels import AnyArray, NoiseLevel, expand_like, namespace
from diffusion.parameterization import Parameterization

Conditions = tuple[Condition, ...]
# A leaf of a guidance: a float (an int where it is a label), traced in a program, and whatever else
# a map over the tree makes of it.
Number = Any
# Calls: (x, level, label) -> log p(label | x) [batch], or a denoiser.
Companion = Callable[..., Any]


class Run(NamedTuple):
    """Where the parameters of another network are; '' is the run that is sampled, or its average.

    `checkpoint` is a step, or -1 for the newest.
    """

    workdir: str
    ema: str
    checkpoint: int


class Seen(NamedTuple):
    """What a guidance may look at, beside the prediction that those before it left."""

    x: AnyArray
    level: NoiseLevel
    condition: Condition
    # The network's prediction under `condition`, and under each that the guidance asked for.
    conditional: Prediction
    others: tuple[Prediction, ...]
    # The other network, of a guidance that has a `run`.
    companion: Companion | None
    parameterization: Parameterization


@dataclasses.dataclass(frozen=True)
class Guidance(abc.ABC):
    """One change of a denoiser's prediction.

    Subclasses are frozen dataclasses and pytrees (`register`): numbers are leaves, so that they may
    be arguments of a program and change without a new one; what decides its structure is in the
    tree's definition. They are made by functions, which check the values.
    """

    # Does a network have to know "no label"?
    needs_null: ClassVar[bool] = False
    # What the other network is: 'denoiser', 'classifier' or '' (there is none).
    companion: ClassVar[str] = ""

    def conditions(self, condition: Condition, null: Condition, batch: int) -> Conditions:
        """Under which conditions the network is asked, beside the one of the samples.

        null: the condition that says nothing; None where the network knows none.
        batch: how many samples there are.
        """
        return ()

    @abc.abstractmethod
    def apply(self, guided: Prediction, seen: Seen) -> Prediction:
        """The changed prediction."""


def register(cls: type) -> type:
    """A frozen dataclass as a pytree; fields with `static()` belong to the structure."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    return jax.tree_util.register_dataclass(cls)


def static() -> Any:
    """A field that is part of the structure."""
    return dataclasses.field(metadata={"static": True})


def guide(
    denoiser: Denoiser,
    guidances: Sequence[Guidance],
    parameterization: Parameterization,
    null: Condition = None,
    companions: Sequence[Companion | None] | None = None,
) -> Denoiser:
    """A denoiser whose prediction is changed by each guidance in turn; clipping goes outside.

    All that is asked of the network itself is one call with a batch of all conditions, that of the
    samples first. A learned variance is that of the conditional part.

    Args:
        denoiser: of the network, clipped by nothing.
        guidances: their numbers may be traced; with none of them the denoiser is returned.
        parameterization: of the network.
        null: the condition "no label"; its leaves broadcast to those of the condition.
        companions: for each guidance its other network, or None.
    """
    if not guidances:
        return denoiser
    companions = companions or [None] * len(guidances)

    def denoise(x: AnyArray, level: NoiseLevel, condition: Condition = None) -> Prediction:
        asked = [guidance.conditions(condition, null, len(x)) for guidance in guidances]
        conditional, *others = _together(denoiser, x, level, [condition, *sum(asked, ())])
        guided = conditional
        for guidance, own, companion in zip(guidances, asked, companions, strict=True):
            mine, others = tuple(others[: len(own)]), others[len(own) :]
            seen = Seen(x, level, condition, conditional, mine, companion, parameterization)
            guided = guidance.apply(guided, seen)
        return guided._replace(variance_fraction=conditional.variance_fraction)

    return denoise


def calls(guidances: Sequence[Guidance], null: Condition) -> int:
    """Evaluations of denoising networks for each image and level; a classifier is not counted."""
    one = {"label": np.zeros(1, int)} | jax.tree.map(np.atleast_1d, null or {})
    own = sum(len(guidance.conditions(one, null, 1)) for guidance in guidances)
    return 1 + own + sum(guidance.companion == "denoiser" for guidance in guidances)


def replaced(condition: Condition, by: Condition) -> Condition:
    """The condition with the entries that `by` has, broadcast to the shape of its own."""
    if condition is None or by is None or not by.keys() <= condition.keys():
        raise ValueError(
            f"guidance: the condition has {sorted(condition or {})}, and for the comparison "
            f"{sorted(by or {})} would be replaced; a network without labels has no such guidance"
        )

    def fill(own: AnyArray, new: ArrayLike) -> AnyArray:
        return namespace(own).broadcast_to(namespace(own).asarray(new), own.shape)

    return condition | {name: jax.tree.map(fill, condition[name], by[name]) for name in by}


def _together(
    denoiser: Denoiser, x: AnyArray, level: NoiseLevel, conditions: list[Condition]
) -> list[Prediction]:
    """The predictions under each condition, by one call."""
    count, size = len(conditions), len(x)
    if count == 1:
        return [denoiser(x, level, conditions[0])]
    xp = namespace(x)
    whole = {name: value for c in conditions for name, value in (c or {}).items()}

    def field(condition: Condition, name: str) -> Any:
        # What only some ask for is off (zero) for the others.
        given = (condition or {}).get(name)
        return jax.tree.map(xp.zeros_like, whole[name]) if given is None else given

    stacked = {
        name: jax.tree.map(
            lambda *parts: xp.concatenate(parts), *(field(c, name) for c in conditions)
        )
        for name in whole
    }
    tile = lambda f: xp.tile(f, count) if np.ndim(f) else f  # noqa: E731
    out = denoiser(xp.concatenate([x] * count), NoiseLevel(*map(tile, level)), stacked or None)
    return [
        jax.tree.map(lambda field, k=k: field[k * size : (k + 1) * size], out) for k in range(count)
    ]


def inside(level: NoiseLevel, interval: tuple[Number, Number], x: AnyArray) -> ArrayLike:
    """Whether sigma / alpha is in (low, high], to multiply x."""
    xp = namespace(level.logsnr)
    sigma = xp.exp(-0.5 * xp.asarray(level.logsnr))
    return expand_like((interval[0] < sigma) & (sigma <= interval[1]), x)
