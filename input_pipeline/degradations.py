"""Low-resolution images as super-resolution learns from them, made on the device.

Names of `DEGRADATIONS`: 'none' is a reduction and nothing else; 'blur' blurs some of the reduced
images (first upsampler of DALL-E 2, after SR3); 'bsr' is the practical degradation of BSRGAN (Zhang
et al., 2021, section 3) as latent diffusion uses it (second upsampler of DALL-E 2).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from input_pipeline.jpeg import jpeg
from input_pipeline.resize import METHODS, apply, resize, weights

DEGRADATIONS = ("none", "blur", "bsr")
_KERNEL = 25
_GAUSSIAN = METHODS.index("gaussian")

Images = Float[Array, "batch height width channels"]


def blur(images: Images, sigma: float = 0.6, size: int = 3) -> Images:
    """Gaussian blur by a kernel of size x size, mirrored at the border."""
    off = np.arange(size) - (size - 1) / 2
    line = np.exp(-0.5 * (off / sigma) ** 2)
    line = (line / line.sum()).astype(np.float32)
    kernel = jnp.broadcast_to(jnp.asarray(np.outer(line, line)), (len(images), size, size))
    return _convolve(images, kernel, "reflect")


def random_blur(images: Images, key: Key[Array, ""], probability: float) -> Images:
    """`blur` of each image with a probability."""
    chosen = jax.random.bernoulli(key, probability, (len(images), 1, 1, 1))
    return jnp.where(chosen, blur(images), images)


def add_noise(images: Images, noise: Images, level: Float[Array, " batch"]) -> Images:
    """Images with normal `noise` at a level for each, from 0 (none) to 1 (nothing else).

    cos(pi level / 2) of the image and sin(pi level / 2) of noise, the cosine schedule: the noise
    conditioning augmentation of Ho et al. (2021, "Cascaded diffusion models") and Imagen.
    """
    angle = 0.5 * jnp.pi * level[:, None, None, None]
    return jnp.cos(angle) * images + jnp.sin(angle) * noise


def degrade(
    images: Float[Array, "batch side side 3"],
    key: Key[Array, ""],
    low: int,
    kind: str,
    probability: float = 0.5,
    reduction: str = "area",
) -> Float[Array, "batch low low 3"]:
    """Images in [-1, 1] at `low` pixels a side, by a name of `DEGRADATIONS`.

    Args:
        probability: of the blur of 'blur'.
        reduction: method of `resize` of 'none' and 'blur'; 'bsr' draws its own. 'area' is what
            `images.center_crop` makes of images that are 2^n times too large, that is, of those
            that a network of `low` pixels learns from.
    """
    if kind == "bsr":
        return bsr(127.5 * (images + 1), key, low) / 127.5 - 1
    small = resize(images, (low, low), reduction)
    # After the reduction: before it, so narrow a blur hardly reaches beyond a pixel of the result.
    return random_blur(small, key, probability) if kind == "blur" else small


def bsr(
    images: Float[Array, "batch side side 3"], key: Key[Array, ""], low: int
) -> Float[Array, "batch low low 3"]:
    """Blur twice, reduce twice, noise and JPEG, in random order, and JPEG once more.

    All that is random is drawn for each image, but the order, which a batch shares, so that each
    step is computed once. Of the reductions the last goes to `low`; the other, always before it, to
    a random size by a random filter. With a factor of 4 a quarter of the images is halved before.

    Args:
        images: 0 to 255, as is the result.
    """
    batch, side = images.shape[:2]
    factor = side / low
    keys = jax.random.split(key, 6)
    halved = jnp.zeros(batch, bool)
    if factor == 4:
        halved = jax.random.bernoulli(keys[0], 0.25, (batch,))
    size = jnp.full(batch, side)
    half, _ = _to_size(images, size, size // 2, _random_filter(keys[1], batch))
    images = jnp.where(halved[:, None, None, None], half, images)
    size = jnp.where(halved, size // 2, size)
    factors = jnp.where(halved, factor / 2, factor)

    def reduce_randomly(key, images, size):
        keys = jax.random.split(key, 4)
        resized = jax.random.bernoulli(keys[0], 0.75, (batch,))
        by = jax.random.uniform(keys[1], (batch,), minval=1.0, maxval=2 * factors)
        by = jnp.where(resized, by, factors)
        kind = jnp.where(resized, _random_filter(keys[2], batch), _GAUSSIAN)
        sigma = jax.random.uniform(keys[3], (batch,), minval=0.1, maxval=0.6 * factors)
        return _to_size(images, size, jnp.maximum((size / by).astype(int), 1), kind, sigma)

    def reduce_to_low(key, images, size):
        return _to_size(images, size, jnp.full(batch, low), _random_filter(key, batch))

    def random_jpeg(key, images, size):
        done = jax.random.bernoulli(key, 0.9, (batch, 1, 1, 1))
        return jnp.where(done, jpeg(images, _quality(key, batch)), images), size

    def blurred(key, images, size):
        return _convolve(images, _kernels(key, factors), "edge"), size

    def noisy(key, images, size):
        return jnp.clip(images + _noise(key, images.shape), 0, 255), size

    steps = (blurred, blurred, reduce_randomly, reduce_to_low, noisy, random_jpeg)
    order = jax.random.permutation(keys[2], len(steps))
    # Where the last reduction came before the other, they change places.
    first = jnp.argmax((order == 2) | (order == 3))
    order = jnp.where((order == 2) | (order == 3), 3, order).at[first].set(2)

    def step(state, chosen):
        step_key, number = chosen
        images, size = jax.lax.switch(number, steps, step_key, *state)
        return (_extended(images, size), size), None

    each = jax.random.split(keys[3], len(steps))
    (images, _), _ = jax.lax.scan(step, (images, size), (each, order))
    images = jnp.clip(images[:, :low, :low], 0, 255)
    return jpeg(images, _quality(keys[4], batch))


def _to_size(images, size, target, kind, sigma=None):
    """(images at their target sizes in arrays as large as before, these sizes)."""
    length = images.shape[1]
    sigma = jnp.ones(len(images)) if sigma is None else sigma
    matrix = jax.vmap(lambda *args: weights(*args[:3], length, length, args[3]))(
        kind, size, target, sigma
    )
    return apply(images, matrix, matrix), target


def _extended(images: Images, size: Int[Array, " batch"]) -> Images:
    """The last row and column of each image, repeated to the end of the array."""
    index = jnp.minimum(jnp.arange(images.shape[1]), size[:, None] - 1)
    images = jnp.take_along_axis(images, index[:, :, None, None], axis=1)
    return jnp.take_along_axis(images, index[:, None, :, None], axis=2)


def _random_filter(key: Key[Array, ""], batch: int) -> Int[Array, " batch"]:
    return jax.random.randint(key, (batch,), 0, _GAUSSIAN)


def _quality(key: Key[Array, ""], batch: int) -> Float[Array, " batch"]:
    return jax.random.randint(key, (batch,), 30, 96).astype(jnp.float32)


def _kernels(
    key: Key[Array, ""], factor: Float[Array, " batch"]
) -> Float[Array, "batch size size"]:
    """Gaussian kernels of 7 to 25 pixels, half of them of two widths along a random direction."""
    keys = jax.random.split(key, 6)
    batch = factor.shape
    uniform = [jax.random.uniform(k, batch) for k in keys[:4]]
    # Variances along the axes where they are two, one standard deviation where it is one.
    two = jnp.stack(uniform[:2]) * (4 + factor)
    one = (uniform[0] * (2 + 0.2 * factor)) ** 2
    isotropic = jax.random.bernoulli(keys[4], 0.5, batch)
    variances = jnp.maximum(jnp.where(isotropic, one, two), 1e-4)
    angle = jnp.pi * uniform[2]
    off = jnp.arange(_KERNEL) - _KERNEL // 2
    y, x = jnp.meshgrid(off, off, indexing="ij")
    cos, sin = jnp.cos(angle)[:, None, None], jnp.sin(angle)[:, None, None]
    along, across = x * cos + y * sin, y * cos - x * sin
    first, second = variances[0, :, None, None], variances[1, :, None, None]
    kernel = jnp.exp(-0.5 * (along**2 / first + across**2 / second))
    reach = jax.random.randint(keys[5], batch, 3, _KERNEL // 2 + 1)[:, None, None]
    kernel = jnp.where(jnp.maximum(abs(x), abs(y)) <= reach, kernel, 0)
    return kernel / kernel.sum((1, 2), keepdims=True)


def _noise(key: Key[Array, ""], shape: tuple[int, ...]) -> Images:
    """Of level 2 to 25: 40% each channel its own, 40% grey, the others correlated at random."""
    keys = jax.random.split(key, 5)
    batch = shape[0]
    level = jax.random.randint(keys[0], (batch,), 2, 26)
    normal = jax.random.normal(keys[1], shape)
    # Random axes, orthonormal: by hand, since a QR decomposition takes long to compile.
    first, second = jax.random.normal(keys[2], (2, batch, 3))
    first /= jnp.linalg.norm(first, axis=1, keepdims=True)
    third = jnp.cross(first, second)
    third /= jnp.linalg.norm(third, axis=1, keepdims=True)
    axes = jnp.stack([first, jnp.cross(third, first), third], axis=2)
    mix = axes * jnp.sqrt(jax.random.uniform(keys[3], (batch, 1, 3)))
    correlated = jnp.einsum("bhwc,bdc->bhwd", normal, mix)
    grey = jnp.broadcast_to(normal[..., :1], shape)
    which = jax.random.uniform(keys[4], (batch, 1, 1, 1))
    noise = jnp.where(which < 0.4, normal, jnp.where(which < 0.8, grey, correlated))
    return level[:, None, None, None] * noise


def _convolve(images: Images, kernels: Float[Array, "batch size size"], border: str) -> Images:
    """Each image with its own kernel."""
    batch, height, width, channels = images.shape
    size = kernels.shape[-1]
    before, after = (size - 1) // 2, size // 2
    around = (before, after)
    padded = jnp.pad(images, ((0, 0), around, around, (0, 0)), mode=border)
    # One group of the convolution for each image and channel.
    stacked = padded.transpose(1, 2, 0, 3).reshape(1, *padded.shape[1:3], -1)
    filters = jnp.repeat(kernels.transpose(1, 2, 0), channels, axis=-1)[:, :, None]
    out = jax.lax.conv_general_dilated(
        stacked,
        filters,
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=math.prod((batch, channels)),
        precision=jax.lax.Precision.HIGHEST,
    )
    return out.reshape(height, width, batch, channels).transpose(2, 0, 1, 3)
