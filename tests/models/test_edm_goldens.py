"""DDPM++, NCSN++ and ADM against outputs of EDM's and score_sde's own networks."""

import json
import pathlib

import jax
import numpy as np
import pytest

from models.dhariwal_unet import DhariwalUNetConfig, make_dhariwal_unet
from models.song_unet import SongUNetConfig, make_song_unet
from tests.golden.models import edm_inputs as given
from tests.golden.models import generated
from tests.models.edm_names import params_from_edm, params_from_score_sde

GOLDEN = pathlib.Path("tests/golden/models")
SIZES = {"in_channels": 3, "out_channels": 3, "image_size": given.SIZE}
CONDITIONS = {"num_classes": given.CLASSES, "null_class": True, "augment_dim": 9}
NCSNPP = {"time_embedding": "fourier", "encoder": "residual", "resample_filter": (1, 3, 3, 1)}


def error(case, config, make, params_from, condition):
    """Largest difference from the golden output, relative to its largest value."""
    shapes = json.loads((GOLDEN / f"{case}.json").read_text())
    tensors = {name: given.tensor(name, shape) for name, shape in shapes.items()}
    network = make(config)
    x = generated.images(len(given.SIGMAS), 3, given.SIZE).transpose(0, 2, 3, 1)
    params = params_from(tensors, config, network)
    output = jax.jit(network.apply)(params, x, np.log(given.SIGMAS), condition)
    expected = np.load(GOLDEN / f"{case}.npz")["output"].transpose(0, 2, 3, 1)
    return np.abs(output - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
    ("case", "config", "make"),
    [
        ("edm_ddpmpp", SongUNetConfig(**SIZES, **given.SONG, **CONDITIONS), make_song_unet),
        (
            "edm_ncsnpp",
            SongUNetConfig(**SIZES, **given.SONG, **CONDITIONS, **NCSNPP),
            make_song_unet,
        ),
        ("edm_adm", DhariwalUNetConfig(**SIZES, **given.ADM, **CONDITIONS), make_dhariwal_unet),
    ],
    ids=["ddpmpp", "ncsnpp", "adm"],
)
def test_edm(case, config, make):
    condition = {"label": np.array(given.LABELS), "augment": given.AUGMENT.astype(np.float32)}
    assert error(case, config, make, params_from_edm, condition) < 1e-5


def test_score_sde_ncsnpp():
    config = SongUNetConfig(**SIZES, **given.SONG, **NCSNPP)
    found = error("score_sde_ncsnpp", config, make_song_unet, params_from_score_sde, None)
    assert found < 1e-5
