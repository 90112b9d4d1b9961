import numpy as np
import pytest
from PIL import Image

from configs import base
from pipelines import inspect as inspection
from training.components import ConfigError
from training.workdir import Workdir


def config(**diffusion):
    config = base.get_config()
    config.model.attention_resolutions = ()
    config.sample.update(grid="uniform", steps=9)
    config.diffusion.update(diffusion)
    return config


@pytest.mark.parametrize(
    ("diffusion", "lines"),
    [
        ({}, ["start     t 0        log-SNR 9.2", "mean 1\n", "first     t 999", "last      t -1"]),
        (
            {
                "schedule": "zero_terminal_snr(schedule=cosine())",
                "parameterization": "v",
                "weighting": "sigmoid(bias=-1.0)",
                "time_sampler": "logit_normal",
            },
            ["log-SNR -inf      alpha 0           sigma 1"],
        ),
        (
            {"schedule": "edm", "parameterization": "edm", "time_sampler": "log_normal"},
            ["log-SNR -8.7641   alpha 1           sigma 80", "median 2.4"],
        ),
        (
            {"schedule": "vdm_network", "loss": "vdm", "time_sampler": "low_discrepancy"},
            ["learned values as they start", "log-SNR 13.30"],
        ),
    ],
)
def test_the_picture_and_the_numbers(tmp_path, capsys, diffusion, lines):
    inspection.inspect(config(**diffusion), tmp_path / "new")
    out = capsys.readouterr().out
    for line in lines:
        assert line in out
    picture = np.asarray(Image.open(tmp_path / "new/inspect.png").convert("RGB"))
    assert picture.shape == (920, 1500, 3)
    # Each of the six panels has something drawn in it beside the white.
    for row in np.split(picture[100:], 2):
        for panel in np.array_split(row, 3, axis=1):
            assert np.mean(np.any(panel < 200, axis=-1)) > 0.01


def test_a_grid_that_does_not_fit_is_told_and_the_rest_drawn(tmp_path, capsys):
    settings = config(schedule="vp")
    settings.sample.grid = "respaced"
    inspection.inspect(settings, tmp_path)
    assert "sampling  none: grid 'respaced' picks indices" in capsys.readouterr().out
    assert (tmp_path / "inspect.png").exists()


def test_an_impossible_objective_is_a_mistake_of_the_config(tmp_path):
    with pytest.raises(ConfigError, match=r"config.diffusion: parameterization 'Eps'"):
        inspection.inspect(config(schedule="zero_terminal_snr(schedule=linear())"), tmp_path)


def test_a_trained_schedule_is_the_checkpoints(tmp_path, capsys, monkeypatch):
    settings = config(schedule="vdm_scalar", loss="vdm")
    Workdir(tmp_path).start(settings, [])
    trained = {"objective": {"schedule": {"b": np.float32(-9.0), "w": np.float32(11.0)}}}
    monkeypatch.setattr(inspection.checkpoints, "steps", lambda directory: [70])
    monkeypatch.setattr(
        inspection.checkpoints, "restore_for_sampling", lambda *arguments: (trained, 70)
    )
    inspection.inspect(settings, tmp_path)
    out = capsys.readouterr().out
    assert "learned values of step 70" in out
    assert "log-SNR 9.0000" in out
    # Another objective is not the run's.
    inspection.inspect(config(schedule="vdm_scalar(gamma_max=6.0)", loss="vdm"), tmp_path)
    assert "learned values as they start" in capsys.readouterr().out
