"""EDM's augmentation of training images, on the device, inside the training step.

It is non-leaky (Karras et al., 2022, appendix F; Karras et al., 2020): the network is told what
was done to each image and asked for images to which nothing was done, so no trace is learned.
Resampling is that of StyleGAN2-ADA: up by two with the wavelet sym6, bilinear, down by two.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Bool, Float, PRNGKeyArray

# Decomposition low-pass filter of the orthogonal wavelet sym6 (Daubechies, 1992).
_SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
# Pixels around the output that its low-pass filter sees.
_MARGIN = len(_SYM6) // 4

_SCALE_STD = 0.2  # log2 of the isotropic and of the anisotropic factor
_TRANSLATE_STD = 0.125  # of the image's side
_ROTATED_FRAME = 0.5  # probability that anisotropic scaling is along rotated axes

Images = Float[Array, "batch height width channels"]
Matrices = Float[Array, "batch 3 3"]
Number = Float[Array, " batch"]


class Transform(NamedTuple):
    """What is done to each image, in this order; all zeros is nothing."""

    flip_x: Bool[Array, " batch"]  # left and right
    flip_y: Bool[Array, " batch"]
    scale: Number  # in standard deviations
    rotation: Number  # radians, counterclockwise
    anisotropy: Number  # in standard deviations
    axis: Number  # radians, of the anisotropy
    shift: Float[Array, "batch 2"]  # in standard deviations, to the right and down

    def labels(self) -> Float[Array, "batch 9"]:
        """What the network is told; zeros where nothing was done."""
        return jnp.stack(
            [
                self.flip_x.astype(jnp.float32),
                self.flip_y.astype(jnp.float32),
                self.scale,
                jnp.cos(self.rotation) - 1,
                jnp.sin(self.rotation),
                self.anisotropy * jnp.cos(self.axis),
                self.anisotropy * jnp.sin(self.axis),
                self.shift[:, 0],
                self.shift[:, 1],
            ],
            axis=1,
        )

    def inverse(self, height: int, width: int) -> Matrices:
        """Matrix from a pixel (x, y, 1) of the result to one of the flipped image.

        In pixels from the centre; y points down.
        """
        factor = jnp.exp2(_SCALE_STD * self.scale)
        stretch = jnp.exp2(_SCALE_STD * self.anisotropy)
        shift = _TRANSLATE_STD * self.shift * jnp.array([width, height])
        steps = [
            _diagonal(1 / factor, 1 / factor),
            _rotation(self.rotation),
            _rotation(-self.axis),
            _diagonal(1 / stretch, stretch),
            _rotation(self.axis),
            _translation(-shift),
        ]
        result = steps[0]
        for step in steps[1:]:
            result = jnp.matmul(result, step, precision="highest")
        return result


@dataclasses.dataclass(frozen=True)
class Augment:
    """Flips, scales, rotates, stretches and shifts, each with `probability`, on the device.

    Flipping left and right is a coin for every image whenever the probability is not zero.
    """

    probability: float
    # Numbers in the label of an image; what `augment_dim` of a network must be.
    dim: int = dataclasses.field(default=9, init=False)

    def draw(self, key: PRNGKeyArray, batch: int) -> Transform:
        """Random transforms of `batch` images."""
        keys = iter(jax.random.split(key, 13))

        def chosen(values, probability=self.probability):
            shape = (batch,) + (1,) * (values.ndim - 1)
            return jnp.where(jax.random.bernoulli(next(keys), probability, shape), values, 0)

        def coin():
            return jax.random.bernoulli(next(keys), 0.5, (batch,))

        def normal(*shape):
            return jax.random.normal(next(keys), (batch, *shape))

        def angle():
            return jax.random.uniform(next(keys), (batch,), minval=-np.pi, maxval=np.pi)

        return Transform(
            flip_x=coin() & (self.probability > 0),
            flip_y=chosen(coin()).astype(bool),
            scale=chosen(normal()),
            rotation=chosen(angle()),
            anisotropy=chosen(normal()),
            axis=chosen(angle(), _ROTATED_FRAME),
            shift=chosen(normal(2)),
        )

    def __call__(
        self, images: Images, key: PRNGKeyArray
    ) -> tuple[Images, Float[Array, "batch labels"]]:
        """The augmented images, and what was done to each as `dim` numbers."""
        transform = self.draw(key, images.shape[0])
        return apply(images, transform), transform.labels()


def edm(probability: float = 0.12) -> Augment:
    """EDM's augmentations with its probability for CIFAR-10 (0.15 for FFHQ and AFHQv2)."""
    if not 0 <= probability <= 1:
        raise ValueError(f"edm: probability must be between 0 and 1, not {probability}")
    return Augment(float(probability))


def apply(images: Images, transform: Transform) -> Images:
    """Transformed images, float32. An image that is at most flipped is not resampled."""
    images = images.astype(jnp.float32)
    images = jnp.where(_each(transform.flip_x), images[:, :, ::-1], images)
    images = jnp.where(_each(transform.flip_y), images[:, ::-1], images)
    moved = transform.labels()[:, 2:].any(axis=1)
    warped = warp(images, transform.inverse(*images.shape[1:3]))
    return jnp.where(_each(moved), warped, images)


def warp(images: Images, inverse: Matrices) -> Images:
    """Images resampled at inverse @ (x, y, 1) of each pixel; beyond its border one is mirrored.

    The mirror images reach as far as one side; farther out is zero. (EDM mirrors as far as the
    batch at hand needs and no farther than that, which would be a shape that depends on values.)
    """
    height, width = images.shape[1:3]
    up_y, up_x = _upsample(height), _upsample(width)
    fine = jnp.einsum("ph,qw,bhwc->bpqc", up_y, up_x, images, precision="highest")

    # Index 2 k of a fine axis is pixel k of the coarse one, counted from the latter's margin.
    y = jnp.arange(2 * (height + 2 * _MARGIN)) / 2 - _MARGIN - (height - 1) / 2
    x = jnp.arange(2 * (width + 2 * _MARGIN)) / 2 - _MARGIN - (width - 1) / 2
    column, row = (
        inverse[:, i, 0, None, None] * x
        + inverse[:, i, 1, None, None] * y[:, None]
        + inverse[:, i, 2, None, None]
        for i in range(2)
    )
    at = jnp.stack([2 * (row + 1.5 * (height - 1)), 2 * (column + 1.5 * (width - 1))], axis=1)

    def sample(channel, at):
        return map_coordinates(channel, list(at), order=1, mode="constant")

    warped = jax.vmap(jax.vmap(sample, (-1, None), -1))(fine, at)
    down_y, down_x = _downsample(height), _downsample(width)
    return jnp.einsum("hp,wq,bpqc->bhwc", down_y, down_x, warped, precision="highest")


def _upsample(size: int) -> Float[np.ndarray, "fine size"]:
    """Mirrors an axis by size - 1 on both sides, then doubles it with sym6."""
    mirrored = np.pad(np.eye(size), ((size - 1, size - 1), (0, 0)), mode="reflect")
    taps = 5 + np.arange(2 * len(mirrored))[:, None] - 2 * np.arange(len(mirrored))
    return (_filter(taps) @ mirrored).astype(np.float32)


def _downsample(size: int) -> Float[np.ndarray, "size fine"]:
    """Halves an axis that has `_MARGIN` more pixels on both sides, which go."""
    taps = np.arange(2 * (size + 2 * _MARGIN)) - 2 * np.arange(size)[:, None] - 1
    return _filter(taps).astype(np.float32)


def _filter(taps: np.ndarray) -> np.ndarray:
    """Coefficient of each number; zero where there is none."""
    inside = (taps >= 0) & (taps < len(_SYM6))
    return np.where(inside, np.array(_SYM6)[np.clip(taps, 0, len(_SYM6) - 1)], 0.0)


def _each(flags: Bool[Array, " batch"]) -> Bool[Array, "batch 1 1 1"]:
    return flags[:, None, None, None]


def _matrices(rows: list[list]) -> Matrices:
    entries = [jnp.stack(jnp.broadcast_arrays(*row), axis=-1) for row in rows]
    return jnp.stack(jnp.broadcast_arrays(*entries), axis=-2)


def _diagonal(x: Number, y: Number) -> Matrices:
    return _matrices([[x, 0.0, 0.0], [0.0, y, 0.0], [0.0, 0.0, 1.0]])


def _translation(shift: Float[Array, "batch 2"]) -> Matrices:
    return _matrices([[1.0, 0.0, shift[:, 0]], [0.0, 1.0, shift[:, 1]], [0.0, 0.0, 1.0]])


def _rotation(angle: Number) -> Matrices:
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return _matrices([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
