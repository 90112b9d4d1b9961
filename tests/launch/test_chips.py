import pytest

from launch import chips
from training import flops
from training.components import ConfigError


@pytest.mark.parametrize(
    ("text", "google", "topology"),
    [
        # Of v4 and v5p Google counts TensorCores, two a chip.
        ("v5p-256", "v5p-512", "4x8x8"),
        ("v5p-64", "v5p-128", "4x4x4"),
        ("v4-8", "v4-16", "2x2x2"),
        ("v5e-16", "v5e-16", "4x4"),
        ("v6e-8", "v6e-8", "2x4"),
        ("h100-64", "", ""),
    ],
)
def test_names_and_topologies(text, google, topology):
    fleet = chips.fleet(text)
    assert (fleet.google_name, fleet.topology) == (google, topology)
    assert fleet.count == int(text.split("-")[1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5p", "'v5p-256'"),
        ("v5p-0", "'v5p-256'"),
        ("h10-8", "did you mean 'h100'"),
        ("tpu-8", "allowed: a100-40g"),
    ],
)
def test_mistakes(text, message):
    with pytest.raises(ConfigError, match=message):
        chips.fleet(text)


def test_a_slice_that_is_no_box():
    with pytest.raises(ConfigError, match="power of two"):
        chips.fleet("v5p-24").topology  # noqa: B018


def test_every_chip_has_a_peak_in_the_one_table():
    for name, chip in chips.CHIPS.items():
        assert chip.device_kind in flops.PEAK_TFLOPS, name
        assert chip.peak("bfloat16") > 1e14
        assert chip.memory >= 16e9
