"""Scenes of one or two coloured shapes: their attributes, captions and pixels.

A scene follows from (split, index) alone. The unit of length is the side of the image.
"""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 90, 220),
    "yellow": (240, 210, 50),
    "purple": (140, 60, 170),
    "orange": (245, 135, 30),
}
BACKGROUNDS = {
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "black": (0, 0, 0),
    "blue": COLOURS["blue"],
    "green": COLOURS["green"],
}
SIZES = {"small": 0.13, "large": 0.21}  # radius of the circumscribed circle
# One shape of each kind and each colour is never seen in training, but all of its parts are.
HELD_OUT = frozenset(
    {
        ("circle", "blue"),
        ("square", "yellow"),
        ("triangle", "purple"),
        ("star", "orange"),
        ("cross", "red"),
        ("diamond", "green"),
    }
)
SPLITS = {"train": 20_000, "test": 2_000, "compositional": 2_000}

# Middle of a lone object; middle of the first of two, the second's is opposite.
_PLACES = {
    "centre": (0.5, 0.5),
    "left": (0.25, 0.5),
    "right": (0.75, 0.5),
    "top": (0.5, 0.25),
    "bottom": (0.5, 0.75),
}
_RELATIONS = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}
_PHRASES = {
    "centre": "",
    "left": " on the left",
    "right": " on the right",
    "top": " at the top",
    "bottom": " at the bottom",
}
_SUPERSAMPLING = 4


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object; `x` and `y` are its middle, from the upper left corner."""

    shape: str
    colour: str
    size: str
    x: float
    y: float

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


@dataclasses.dataclass(frozen=True)
class Scene:
    """One or two objects; `position` is a place of the one or a relation of the first."""

    things: tuple[Thing, ...]
    position: str
    background: str

    @property
    def caption(self) -> str:
        """The scene in words; a different one for every combination of attributes."""
        if len(self.things) == 1:
            middle = f"a {self.things[0]}{_PHRASES[self.position]}"
        else:
            middle = f"a {self.things[0]} {self.position} a {self.things[1]}"
        return f"{middle} on a {self.background} background"

    @property
    def label(self) -> int:
        """Shape and colour of the first object as one number."""
        first = self.things[0]
        return SHAPES.index(first.shape) * len(COLOURS) + list(COLOURS).index(first.colour)

    @property
    def attributes(self) -> dict[str, str]:
        """What the caption says, word by word; 'none' for the second object of a lone one."""
        first, second = (*self.things, None)[:2]
        return {
            "shape": first.shape,
            "colour": first.colour,
            "size": first.size,
            "position": self.position,
            "second_shape": second.shape if second else "none",
            "second_colour": second.colour if second else "none",
            "second_size": second.size if second else "none",
            "background": self.background,
        }


def scene(split: str, index: int) -> Scene:
    """Scene `index` of a split.

    No object of 'train' or 'test' is of a held-out pair of shape and colour; the first object of
    'compositional' always is.
    """
    rng = np.random.default_rng((list(SPLITS).index(split), index))
    two = bool(rng.random() < 0.5)
    position = _pick(rng, _RELATIONS if two else _PLACES)
    x, y = _PLACES[_RELATIONS.get(position, position)]
    seen = [(s, c) for s in SHAPES for c in COLOURS if (s, c) not in HELD_OUT]
    first = sorted(HELD_OUT) if split == "compositional" else seen
    things = []
    for pairs, middle in ((first, (x, y)), (seen, (1 - x, 1 - y)))[: 1 + two]:
        shape, colour = pairs[rng.integers(len(pairs))]
        # Along the line between two objects there is little room.
        jitter = rng.uniform(-1, 1, 2) * [0.02 if m != 0.5 else 0.08 for m in middle]
        things.append(Thing(shape, colour, _pick(rng, SIZES), *(jitter + middle).tolist()))
    used = {thing.colour for thing in things}
    background = _pick(rng, (b for b in BACKGROUNDS if b not in used))
    return Scene(tuple(things), position, background)


def _pick(rng: np.random.Generator, names: Iterable[str]) -> str:
    return str(rng.choice(list(names)))


def render(scene: Scene, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Pixels of a scene, anti-aliased by averaging a finer image."""
    side = size * _SUPERSAMPLING
    image = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    draw = ImageDraw.Draw(image)
    for thing in scene.things:
        radius = SIZES[thing.size]
        colour = COLOURS[thing.colour]
        if thing.shape == "circle":
            draw.circle((thing.x * side, thing.y * side), radius * side, fill=colour)
        else:
            corners = (_OUTLINES[thing.shape] * radius + (thing.x, thing.y)) * side
            draw.polygon([tuple(corner) for corner in corners.tolist()], fill=colour)
    return np.asarray(image.reduce(_SUPERSAMPLING))


def _regular(corners: int, turn: float = -0.25, inner: float | None = None) -> np.ndarray:
    """Corners on the unit circle, the first at `turn` turns; with `inner`, a star."""
    count = corners if inner is None else 2 * corners
    angles = 2 * math.pi * (turn + np.arange(count) / count)
    radii = np.ones(count)
    if inner is not None:
        radii[1::2] = inner
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _cross(arm: float = 0.33) -> np.ndarray:
    quarter = np.array([(arm, -arm), (arm, -0.95), (-arm, -0.95)])
    turn = np.array([(0, 1), (-1, 0)])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4, 0, -1)])


_OUTLINES = {
    "square": _regular(4, turn=-0.125),
    "triangle": _regular(3),
    "star": _regular(5, inner=0.4),
    "cross": _cross(),
    "diamond": _regular(4) * (0.65, 1),
}
