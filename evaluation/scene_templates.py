"""Least-squares fits of flat-coloured shapes to images whose background was taken away."""

import dataclasses
import functools
import itertools
import math

import numpy as np
import scipy.fft
from jaxtyping import Bool, Float, Float32, Int
from scipy import ndimage

# Radii of the circumscribed circle that are fitted, in sides of the image.
RADII = tuple(np.round(np.arange(0.09, 0.26, 0.02), 2).tolist())
_COARSE_RADII = (0.13, 0.21)
# Where the middle of a template is to that of its window, in pixels.
_OFFSETS = (-0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75)
# Standard deviations of the blur of a template's edges, in pixels.
_SOFTNESS = (0.0, 0.8)
_SUPERSAMPLING = 8
# Luma counts fully and what is orthogonal to it 0.4: compression spoils the colours first.
_LUMA = np.array([0.299, 0.587, 0.114]) / np.linalg.norm([0.299, 0.587, 0.114])
_WEIGHTS = (0.4 * np.eye(3) + 0.6 * np.outer(_LUMA, _LUMA)).astype(np.float32)


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> Bool[np.ndarray, "..."]:
    """Whether a point is in a shape of radius 1 about the origin; v points down."""
    if shape == "circle":
        return u**2 + v**2 <= 1
    if shape == "square":
        return np.maximum(abs(u), abs(v)) <= math.sqrt(0.5)
    if shape == "diamond":
        return abs(u) / 0.65 + abs(v) <= 1
    if shape == "triangle":
        return (v <= 0.5) & (math.sqrt(3) * abs(u) - v <= 1)
    if shape == "cross":
        small, large = np.minimum(abs(u), abs(v)), np.maximum(abs(u), abs(v))
        return (small <= 0.33) & (large <= 0.95)
    if shape == "star":
        # Ten mirrored triangles from the middle: to a tip, and 36 degrees on to an inner corner.
        turn = math.pi / 5
        angle = abs((np.arctan2(v, u) + math.pi / 2 + turn) % (2 * turn) - turn)
        x, y = np.hypot(u, v) * np.cos(angle), np.hypot(u, v) * np.sin(angle)
        inner_x, inner_y = 0.4 * math.cos(turn), 0.4 * math.sin(turn)
        return (inner_x - 1) * y - inner_y * (x - 1) >= 0
    raise ValueError(f"shape: no template of {shape!r}")


@dataclasses.dataclass(frozen=True)
class Fit:
    """The object that explains most of each image of a batch.

    Attributes:
        row, column: pixel that the window of the template is about.
        template: index in the bank.
        contrast: colour of the object minus that of the background, of 255.
        margin: share of the energy by which the shape is better than the next best.
    """

    row: Int[np.ndarray, " count"]
    column: Int[np.ndarray, " count"]
    template: Int[np.ndarray, " count"]
    contrast: Float[np.ndarray, "count 3"]
    margin: Float[np.ndarray, " count"]


class Bank:
    """Coverage masks of all shapes, radii and subpixel places, for images of `side` pixels."""

    def __init__(self, side: int, shapes: tuple[str, ...]):
        self.side = side
        self.shapes = shapes
        self.half = math.ceil(RADII[-1] * side + max(_OFFSETS)) + 1
        self.window = 2 * self.half + 1
        places = [(dy, dx) for dy in _OFFSETS for dx in _OFFSETS]
        self.of = [
            (shape, radius, place, soft)
            for shape in shapes
            for radius in RADII
            for place in places
            for soft in _SOFTNESS
        ]
        hard = np.stack([self._mask(*key) for key in itertools.product(shapes, RADII, places)])
        masks = np.stack([ndimage.gaussian_filter(hard, (0, s, s)) for s in _SOFTNESS], axis=1)
        masks = masks.reshape(len(self.of), self.window, self.window)
        self.masks = masks.reshape(len(shapes), -1, self.window, self.window)
        self.area = (masks**2).sum((1, 2))
        unit = masks / np.sqrt(self.area)[:, None, None]
        self._unit = np.ascontiguousarray(unit.reshape(len(masks), -1).T)
        coarse = [self._mask(s, r, (0.0, 0.0)) for s in shapes for r in _COARSE_RADII]
        # The first pixel of a padded image is its corner: the middle of a mask goes there.
        padded = np.zeros((len(coarse), *self._padded), np.float32)
        padded[:, : self.window, : self.window] = [m / np.linalg.norm(m) for m in coarse]
        padded = np.roll(padded, (-self.half, -self.half), (1, 2))
        self._coarse = np.conj(scipy.fft.rfft2(padded))

    @property
    def _padded(self) -> tuple[int, int]:
        size = self.side + 2 * self.half
        return size, size

    def _mask(
        self, shape: str, radius: float, place: tuple[float, float]
    ) -> Float32[np.ndarray, "window window"]:
        fine = (np.arange(self.window * _SUPERSAMPLING) + 0.5) / _SUPERSAMPLING - self.window / 2
        v, u = ((fine - offset) / (radius * self.side) for offset in place)
        inside = _inside(shape, *np.meshgrid(u, v)).astype(np.float32)
        cells = (self.window, _SUPERSAMPLING) * 2
        return inside.reshape(cells).mean((1, 3))

    def _pad(self, images: np.ndarray) -> np.ndarray:
        return np.pad(images, ((0, 0), (self.half,) * 2, (self.half,) * 2, (0, 0)))

    def _windows(self, row: np.ndarray, column: np.ndarray) -> tuple[np.ndarray, ...]:
        """Indices of the window of each image, in padded images."""
        span = np.arange(self.window)
        rows = row[:, None, None] + span[None, :, None]
        return np.arange(len(row))[:, None, None], rows, column[:, None, None] + span

    def find(
        self, images: Float32[np.ndarray, "count side side 3"]
    ) -> tuple[Int[np.ndarray, " count"], Int[np.ndarray, " count"]]:
        """(row, column) of the pixel that the most conspicuous object is about."""
        transform = scipy.fft.rfft2(self._pad(images @ _WEIGHTS).transpose(0, 3, 1, 2))
        best = np.zeros((len(images), self.side, self.side), np.float32)
        inner = slice(self.half, self.half + self.side)
        for mask in self._coarse:
            match = scipy.fft.irfft2(transform * mask, self._padded)[:, :, inner, inner]
            np.maximum(best, (match**2).sum(1), out=best)
        return np.divmod(best.reshape(len(images), -1).argmax(1), self.side)

    def fit(
        self,
        images: Float32[np.ndarray, "count side side 3"],
        row: Int[np.ndarray, " count"],
        column: Int[np.ndarray, " count"],
    ) -> Fit:
        """The best object within a pixel of the given one."""
        seen = self._pad(images)[self._windows(row, column)]
        # One product for all images: one for each is memory-bound, and many times slower.
        seen = seen.reshape(len(images), -1, 3).transpose(0, 2, 1).reshape(3 * len(images), -1)
        match = (seen @ self._unit).reshape(len(images), 3, -1)
        energy = (np.einsum("nct,cw->nwt", match, _WEIGHTS) ** 2).sum(1)
        template = energy.argmax(1)
        each = np.arange(len(images))
        by_shape = np.sort(energy.reshape(len(images), len(self.shapes), -1).max(2), axis=1)
        best = by_shape[:, -1]
        return Fit(
            row,
            column,
            template,
            match[each, :, template] / np.sqrt(self.area[template])[:, None],
            (best - by_shape[:, -2]) / np.maximum(best, 1e-6),
        )

    def pixel(self, fit: Fit) -> tuple[Int[np.ndarray, " count"], Int[np.ndarray, " count"]]:
        """(row, column) of the pixel that holds the middle of the fitted objects."""
        place = np.array([self.of[t][2] for t in fit.template])
        near = np.round(place).astype(int) + np.stack([fit.row, fit.column], axis=1)
        row, column = np.clip(near, 0, self.side - 1).T
        return row, column

    def draw(self, fit: Fit) -> Float32[np.ndarray, "count side side 3"]:
        """The fitted objects in front of nothing."""
        canvas = np.zeros((len(fit.row), *self._padded, 3), np.float32)
        masks = self.masks.reshape(-1, self.window, self.window)[fit.template]
        canvas[self._windows(fit.row, fit.column)] = masks[..., None] * fit.contrast[:, None, None]
        inner = slice(self.half, self.half + self.side)
        return canvas[:, inner, inner]

    def middle(self, fit: Fit, n: int) -> tuple[float, float]:
        """(x, y) of the object in image n, in sides of the image."""
        dy, dx = self.of[fit.template[n]][2]
        x, y = fit.column[n] + 0.5 + dx, fit.row[n] + 0.5 + dy
        return float(x) / self.side, float(y) / self.side

    def left_over(
        self,
        fit: Fit,
        rest: Float32[np.ndarray, "count side side 3"],
        noise: Float[np.ndarray, " count"],
    ) -> Float[np.ndarray, " count"]:
        """Share of an object's energy that is unexplained, without what is noise anyway.

        Args:
            rest: what is left of the images when all fitted objects are taken away.
            noise: variance of a pixel's noise, summed over the channels.
        """
        place = (np.arange(self.side) + 0.5) / self.side
        left = np.zeros(len(fit.row))
        for n, template in enumerate(fit.template):
            x, y = self.middle(fit, n)
            reach = self.of[template][1] + 1.5 / self.side
            near = np.hypot(place[None, :] - x, place[:, None] - y) <= reach
            left[n] = (rest[n][near] ** 2).sum() - noise[n] * near.sum()
        left = np.maximum(left, 0)
        explained = (fit.contrast**2).sum(1) * self.area[fit.template]
        return left / np.maximum(left + explained, 1e-6)


@functools.cache
def bank(side: int, shapes: tuple[str, ...]) -> Bank:
    """The bank for a size of image, made once."""
    return Bank(side, shapes)
