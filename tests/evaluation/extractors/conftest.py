"""Generated weights of Inception as a file, and its extractor, made once."""

import json
import pathlib

import pytest
from safetensors.numpy import save_file

from evaluation.extractors import EXTRACTORS
from tests.golden.models import inception_weights as given

SHAPES = json.loads(pathlib.Path("tests/golden/models/inception.json").read_text())


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    save_file({name: given.tensor(name, shape) for name, shape in SHAPES.items()}, path)
    return path


@pytest.fixture(scope="session")
def inception(inception_file):
    return EXTRACTORS["inception"](path=str(inception_file))
