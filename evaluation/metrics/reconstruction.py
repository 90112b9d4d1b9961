"""Likeness of pairs of images: PSNR and SSIM."""

import numpy as np
from jaxtyping import Float, UInt8
from scipy.ndimage import correlate1d

# Gaussian window of SSIM, and its constants for values up to 255 (Wang et al. 2004, section III).
_SIDE, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(
    images: UInt8[np.ndarray, "count height width channels"],
    references: UInt8[np.ndarray, "..."],
) -> Float[np.ndarray, "count"]:
    """Peak signal-to-noise ratio of each pair in dB, 10 log10(255^2 / mean squared error).

    Equals `skimage.metrics.peak_signal_noise_ratio(data_range=255)`; infinite for equal images.

    Raises:
        ValueError: the images are not of one shape.
    """
    _check(images, references)
    errors = np.array(
        [np.mean((a.astype(np.float64) - b) ** 2) for a, b in zip(images, references, strict=True)]
    )
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(255.0**2 / errors)


def ssim(
    images: UInt8[np.ndarray, "count height width channels"],
    references: UInt8[np.ndarray, "..."],
) -> Float[np.ndarray, "count"]:
    """Structural similarity of each pair, the mean over places and channels (Wang et al. 2004).

    Gaussian window of 11 x 11 with deviation 1.5, only where it lies within the image; K1=0.01,
    K2=0.03. Equals `skimage.metrics.structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=255, channel_axis=-1)`.

    Raises:
        ValueError: the images are not of one shape, or smaller than the window.
    """
    _check(images, references)
    if min(images.shape[1:3]) < _SIDE:
        raise ValueError(f"images are {list(images.shape)}; a side must be at least {_SIDE}")
    return np.array([_ssim(a, b) for a, b in zip(images, references, strict=True)])


def _ssim(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    mean_a, mean_b, square_a, square_b, product = map(_blur, (a, b, a * a, b * b, a * b))
    variances = square_a - mean_a**2 + square_b - mean_b**2
    covariance = product - mean_a * mean_b
    similar = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    return float(np.mean(similar / ((mean_a**2 + mean_b**2 + _C1) * (variances + _C2))))


def _blur(image: np.ndarray) -> np.ndarray:
    """Gaussian means where the whole window lies within the image."""
    half = _SIDE // 2
    weights = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    rows = correlate1d(image, weights, axis=0)[half:-half]
    return correlate1d(rows, weights, axis=1)[:, half:-half]


def _check(images: np.ndarray, references: np.ndarray) -> None:
    if images.shape != references.shape:
        raise ValueError(
            f"images are {list(images.shape)}, references {list(references.shape)}; must be pairs"
        )
