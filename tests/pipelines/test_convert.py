import numpy as np
import pytest

from configs import base
from input_pipeline import SOURCES
from pipelines.convert import convert
from training import components
from training.components import ConfigError


@pytest.fixture
def config():
    config = base.get_config()
    config.data.update(source="digits(split='test')", image_size=8, channels=1)
    return config


def test_prints_the_source_that_gives_the_same_examples(config, tmp_path, capsys):
    config.convert.update(split="held_out", shards=2, fields=("image", "label"))
    convert(config, tmp_path)
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith("example 359/359  examples/s ")
    (line,) = out.splitlines()
    string = line.removeprefix('--config.data.source="').removesuffix('"')
    assert line == f'--config.data.source="{string}"'
    stored = components.build(SOURCES, string, "config.data.source")
    source = SOURCES["digits"](split="test")
    assert stored.fields == ("image", "label")
    assert [stored[i]["label"] for i in range(359)] == [source[i]["label"] for i in range(359)]
    images = [np.stack([s[i]["image"] for i in range(359)]) for s in (stored, source)]
    np.testing.assert_array_equal(*images)
    convert(config, tmp_path)
    assert capsys.readouterr().out == out


def test_mistakes_are_config_errors(config, tmp_path):
    config.convert.fields = ("depth",)
    with pytest.raises(ConfigError, match=r"config\.data\.source = .*digits.* has no 'depth'"):
        convert(config, tmp_path)
    config.convert.update(fields=(), shards=1000)
    with pytest.raises(ConfigError, match="shards: must be from 1 to 359"):
        convert(config, tmp_path)
    with pytest.raises(ConfigError, match="--workdir=gs://bucket/data: records are read from disk"):
        convert(config, "gs://bucket/data")
    (tmp_path / "train").mkdir()
    config.convert.shards = 1
    with pytest.raises(ConfigError, match="train is there and holds no records"):
        convert(config, tmp_path)
