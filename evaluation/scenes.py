"""Reads scenes of coloured shapes back from their pixels, by least squares against templates.

Nothing is learned and no renderer is called: an image is a plain background and at most a few
objects, each a coverage mask (shape, radius, middle) times the difference of its colour from the
background's. The object that explains most of the squared difference is taken first, whatever its
colour, then what explains most of the rest. It is the maximum likelihood estimate under white
noise, which is why soft edges, noise and compression do it little harm.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, UInt8

from evaluation import scene_templates
from evaluation.scene_templates import Bank, Fit
from input_pipeline.sources.shapes_render import BACKGROUNDS, COLOURS, SHAPES, SIZES

UNKNOWN = "unknown"
NONE = "none"
# Where the middle of one object is, and what the first of two is to the second.
PLACES = ("centre", "left", "right", "top", "bottom")
RELATIONS = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

# Images are reduced to this side before they are read: nothing is gained above it.
_SIDE = 32
# How far a fitted radius may be from that of its size, in sides of the image.
_SIZE_TOLERANCE = 0.025
# Distances between colours, of 255 a channel. Orange and yellow are 78 apart, the closest two.
_COLOUR_TOLERANCE = 60.0
# Share of its difference from the background that a colour may have.
_PALENESS = (0.65, 1.1)
_BACKGROUND_TOLERANCE = 60.0
# Least share of the border within the tolerance of its median.
_PLAIN_BORDER = 0.7
# Least difference of an object from the background; purple on grey, the least that is drawn: 81.
_MIN_CONTRAST = 45.0
# Largest share of an object's energy that its template leaves over.
_MAX_LEFT_OVER = 0.4
# Least advantage of the shape over the next best one, as a share of the energy.
_MIN_MARGIN = 0.004
# A lone object is at the centre up to here, beyond it to one side (drawn: 0.08, and 0.23 to 0.27).
_OFF_CENTRE = 0.155
# Two objects stand beside or above each other if one distance is this much the other's.
_MIN_SLOPE = 1.5
_MAX_OBJECTS = 2


@dataclasses.dataclass(frozen=True)
class Seen:
    """One object as read; `x` and `y` are its middle and `radius` its extent, in image sides."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float


@dataclasses.dataclass(frozen=True)
class Reading:
    """What an image shows: its background and its objects, most conspicuous first."""

    background: str
    things: tuple[Seen, ...]

    @property
    def attributes(self) -> tuple[dict[str, str], ...]:
        """All true descriptions, in the words of the captions' attributes.

        Two objects have two: 'a left of b' and 'b right of a'. Without an object, or with more
        than two, nothing that speaks of objects is known.
        """
        count = len(self.things)
        if count == 1:
            return (_describe(self.things[0], None, _place(self.things[0]), self.background),)
        if count != _MAX_OBJECTS:
            return (_describe(None, None, UNKNOWN, self.background),)
        a, b = self.things
        relation = _relation(a, b)
        return (
            _describe(a, b, relation, self.background),
            _describe(b, a, RELATIONS.get(relation, UNKNOWN), self.background),
        )


def read(images: UInt8[np.ndarray, "count side side 3"]) -> list[Reading]:
    """What each image shows; 'unknown' stands where an image is too unclear to say.

    Meant for 32 and 64 pixels a side; below 16 most small shapes cannot be told apart.

    Raises:
        ValueError: the side is under 8, or neither at most 32 nor a multiple of 32.
    """
    side = images.shape[1]
    if side < 8 or (side > _SIDE and side % _SIDE):
        raise ValueError(
            f"images of {side} px: scenes are read at 8 to {_SIDE} px or a multiple of {_SIDE}; "
            "resize them first"
        )
    readings = []
    for start in range(0, len(images), 256):
        readings += _read(images[start : start + 256])
    return readings


def _read(images: UInt8[np.ndarray, "count side side 3"]) -> list[Reading]:
    factor = max(images.shape[1] // _SIDE, 1)
    count, side = len(images), images.shape[1] // factor
    pixels = images.astype(np.float32)
    pixels = pixels.reshape(count, side, factor, side, factor, 3).mean((2, 4))

    sides = (pixels[:, 0], pixels[:, -1], pixels[:, 1:-1, 0], pixels[:, 1:-1, -1])
    border = np.concatenate(sides, axis=1)
    behind = np.median(border, axis=1)
    off = border - behind[:, None]
    plain = (np.linalg.norm(off, axis=-1) < _BACKGROUND_TOLERANCE).mean(1)
    # By medians, since an object may touch the border.
    noise = ((1.4826 * np.median(np.abs(off), axis=1)) ** 2).sum(1)
    difference = pixels - behind[:, None, None]

    bank = scene_templates.bank(side, SHAPES)
    fits: list[Fit] = []
    rest = difference
    for _ in range(_MAX_OBJECTS):
        fits.append(bank.fit(rest, *bank.find(rest)))
        rest = rest - bank.draw(fits[-1])
    # Again, each without the other: where they touch, the first fits were of both.
    for n, fit in enumerate(fits):
        rest = rest + bank.draw(fit)
        fits[n] = bank.fit(rest, *bank.pixel(fit))
        rest = rest - bank.draw(fits[n])
    # One more is one too many.
    fits.append(bank.fit(rest, *bank.find(rest)))
    rest = rest - bank.draw(fits[-1])
    left_over = [bank.left_over(fit, rest, noise) for fit in fits]

    readings = []
    for n in range(count):
        background = UNKNOWN
        if plain[n] >= _PLAIN_BORDER:
            background = _nearest(
                {name: np.subtract(value, behind[n]) for name, value in BACKGROUNDS.items()},
                _BACKGROUND_TOLERANCE,
            )
        things: list[Seen] = []
        for fit, left in zip(fits, left_over, strict=True):
            if np.linalg.norm(fit.contrast[n]) >= _MIN_CONTRAST:
                thing = _seen(bank, fit, n, behind[n], float(left[n]))
                # What sticks to an object already seen is what its template left over.
                if all(_apart(thing, other) for other in things):
                    things.append(thing)
        readings.append(Reading(background, tuple(things)))
    return readings


def _apart(a: Seen, b: Seen) -> bool:
    return math.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius


def _seen(bank: Bank, fit: Fit, n: int, behind: Float[np.ndarray, " 3"], left_over: float) -> Seen:
    shape, radius, *_ = bank.of[fit.template[n]]
    size = min(SIZES, key=lambda name: abs(SIZES[name] - radius))
    if abs(SIZES[size] - radius) > _SIZE_TOLERANCE:
        size = UNKNOWN
    if left_over > _MAX_LEFT_OVER:
        shape = size = UNKNOWN
    elif fit.margin[n] < _MIN_MARGIN:
        shape = UNKNOWN
    off = {}
    for name, value in COLOURS.items():
        full = value - behind
        # Soft and compressed objects are paler than drawn: nearer to the background's colour.
        part = np.clip(fit.contrast[n] @ full / max(full @ full, 1), *_PALENESS)
        off[name] = fit.contrast[n] - part * full
    colour = _nearest(off, _COLOUR_TOLERANCE)
    return Seen(shape, colour, size, *bank.middle(fit, n), radius)


def _nearest(off: Mapping[str, Float[np.ndarray, " 3"]], tolerance: float) -> str:
    distance = {name: float(np.linalg.norm(value)) for name, value in off.items()}
    name = min(distance, key=distance.__getitem__)
    return name if distance[name] <= tolerance else UNKNOWN


def _place(thing: Seen) -> str:
    right, down = thing.x - 0.5, thing.y - 0.5
    aside, off_height = abs(right) > _OFF_CENTRE, abs(down) > _OFF_CENTRE
    if aside and off_height:
        return UNKNOWN
    if aside:
        return "left" if right < 0 else "right"
    if off_height:
        return "top" if down < 0 else "bottom"
    return "centre"


def _relation(first: Seen, second: Seen) -> str:
    right, down = first.x - second.x, first.y - second.y
    if abs(right) >= _MIN_SLOPE * abs(down):
        return "left of" if right < 0 else "right of"
    if abs(down) >= _MIN_SLOPE * abs(right):
        return "above" if down < 0 else "below"
    return UNKNOWN


def _describe(
    first: Seen | None, second: Seen | None, position: str, background: str
) -> dict[str, str]:
    """Attributes as the source has them; all 'unknown' of a scene whose objects are."""
    missing = NONE if first else UNKNOWN
    return {
        "shape": first.shape if first else UNKNOWN,
        "colour": first.colour if first else UNKNOWN,
        "size": first.size if first else UNKNOWN,
        "position": position,
        "second_shape": second.shape if second else missing,
        "second_colour": second.colour if second else missing,
        "second_size": second.size if second else missing,
        "background": background,
    }
