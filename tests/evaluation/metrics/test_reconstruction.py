import json
from pathlib import Path

import numpy as np
import pytest

from evaluation.metrics import psnr, ssim
from tests.golden.evaluation.sets import images

GOLDEN = Path(__file__).parents[2] / "golden" / "evaluation" / "metrics.json"
EXPECTED = json.loads(GOLDEN.read_text())


def test_psnr_as_scikit_image_has_it():
    expected = [np.inf if value is None else value for value in EXPECTED["psnr"]]
    np.testing.assert_allclose(psnr(*images()), expected, rtol=1e-12)


def test_ssim_as_scikit_image_has_it():
    np.testing.assert_allclose(ssim(*images()), EXPECTED["ssim"], rtol=1e-10)


def test_both_are_symmetric_and_best_for_equal_images():
    a, b = images()
    np.testing.assert_allclose(ssim(b, a), ssim(a, b), rtol=1e-12)
    np.testing.assert_allclose(psnr(b, a), psnr(a, b), rtol=1e-12)
    np.testing.assert_allclose(ssim(a, a), 1.0, rtol=1e-12)
    assert np.isinf(psnr(a, a)).all()


def test_differences_do_not_wrap_around():
    black, white = np.zeros((1, 11, 11, 1), np.uint8), np.full((1, 11, 11, 1), 255, np.uint8)
    np.testing.assert_allclose(psnr(black, white), [0.0], atol=1e-12)
    np.testing.assert_allclose(psnr(black, black + np.uint8(1)), [20 * np.log10(255)])
    np.testing.assert_allclose(ssim(black, white), [(0.01 * 255) ** 2 / (255**2 + 2.55**2)])


def test_what_is_wrong_is_told():
    a, b = images()
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match=r"images are \[5, 24, 31, 3\], references \[4, 24"):
            metric(a, b[:4])
    with pytest.raises(ValueError, match=r"\[5, 10, 31, 3\]; a side must be at least 11"):
        ssim(a[:, :10], b[:, :10])
