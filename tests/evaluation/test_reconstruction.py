"""An upsampler's samples against the images that they were made of."""

import types

import numpy as np
import pytest

from configs import base, digits
from evaluation import reconstruction
from evaluation.reconstruction import Reconstruction
from training.components import ConfigError

TRUE = np.random.RandomState(0).randint(0, 256, (3, 16, 16, 3)).astype(np.uint8)


@pytest.fixture
def task(monkeypatch):
    def true_images(indices):
        assert indices.tolist() == [0, 1, 2]
        return TRUE

    task = types.SimpleNamespace(true_images=true_images)
    monkeypatch.setattr(reconstruction.tasks, "make_task", lambda config: task)
    return task


def test_values(task):
    images = TRUE.copy()
    images[0] = np.where(TRUE[0] < 128, TRUE[0] + 10, TRUE[0] - 10)
    images[1] = 255 - TRUE[1]
    found = Reconstruction()(images, None, base.get_config())
    inverse = np.mean((255.0 - 2.0 * TRUE[1]) ** 2)
    wanted = [20 * np.log10(255 / 10), 10 * np.log10(255**2 / inverse)]
    assert found["psnr"] == pytest.approx(np.mean(wanted))
    assert found["psnr_standard_error"] == pytest.approx(abs(wanted[0] - wanted[1]) / 2)
    assert (found["count"], found["identical"]) == (3, 1)
    assert 0 < found["ssim"] < 1


def test_all_identical(task):
    found = Reconstruction()(TRUE, None, base.get_config())
    assert "psnr" not in found
    assert (found["identical"], found["ssim"]) == (3, 1.0)


def test_a_run_that_makes_samples_of_nothing():
    with pytest.raises(ConfigError, match=r"config.task = 'diffusion' makes them of nothing"):
        Reconstruction()(TRUE, None, digits.get_config("smoke"))
