import numpy as np
import pytest

from training import guidance
from training.components import ConfigError


def test_a_directorys_name_has_the_numbers_and_no_paths():
    names = (
        "classifier_free(scale=3.0, interval=(0.28, 5.42))",
        "autoguidance(scale=2, workdir='a/b', ema='slow')",
    )
    name = guidance.part_of_name(names)
    assert name == "classifier_free_scale3.0+autoguidance_scale2_emaslow"
    assert guidance.part_of_name(()) == "unguided"
    assert len(guidance.part_of_name(names * 9)) == 80


def test_numbers_have_the_programs_types():
    assert guidance.as_array(1.0).dtype == np.float32
    assert guidance.as_array(3).dtype == np.int32


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("classifer_free(scale=2.0)", "did you mean 'classifier_free'"),
        ("classifier_free(2.0)", "write each argument with its name"),
        ("classifier_free(scale='2')", "scale must be"),
        ("classifier(scale=1.0)", r"write classifier\(workdir=...\)"),
    ],
)
def test_mistakes_name_the_field(name, message):
    with pytest.raises(ConfigError, match=message) as caught:
        guidance.build_all((name,))
    assert str(caught.value).startswith("config.sample.guidance = ")
