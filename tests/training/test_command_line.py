import pytest

from configs import base
from training import command_line
from training.components import ConfigError
from training.config import save


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with configs/small.py, of the variants '' and 'smoke'."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "small.py").write_text(
        "from configs import base\n"
        "def get_config(variant=''):\n"
        "    if variant not in ('', 'smoke'):\n"
        "        raise ValueError(f'no variant {variant!r}')\n"
        "    config = base.get_config()\n"
        "    config.train.steps = 5 if variant == 'smoke' else 50\n"
        "    return config\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_split():
    overrides = ["--config.a.b=1", "-config.a=x=y", "--noconfig.log.tensorboard", "--config.c"]
    rest = ["main.py", "--config=f.py", "--workdir", "config.d", "--configs.a=1"]
    assert command_line.split([*rest[:2], *overrides, *rest[2:]]) == (overrides, rest)


def test_read(folder):
    assert command_line.read("configs/small.py").train.steps == 50
    assert command_line.read("configs/small.py:smoke").train.steps == 5
    config = base.get_config()
    config.train.steps = 7
    save(config, folder / "config.json")
    assert command_line.read(str(folder / "config.json")) == config


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("configs/smal.py", "no such file; did you mean configs/small.py?"),
        ("configs/zzz", "no such file; configs has small.py"),
        ("config/bsae.py", "/configs/base.py?"),
        ("nothing.json", "nothing.json: no such file"),
        ("configs/small.py:somke", "--config=configs/small.py:somke: no variant 'somke'"),
        ("configs/broken.py", "--config=configs/broken.py: line 2: NameError: name 'x' is not de"),
        ("configs/syntax.py", "SyntaxError"),
        ("configs/none.py", "get_config() returned None, not a ConfigDict"),
        ("configs/empty.py", "AttributeError: module 'config' has no attribute 'get_config'"),
        ("configs/wrong.py", "line 4: TypeError"),
        ("configs/notes.txt", "must be a .py file"),
    ],
)
def test_read_errors(folder, path, message):
    files = {
        "broken.py": "def get_config():\n    return x\n",
        "syntax.py": "def get_config(:\n",
        "none.py": "def get_config():\n    pass\n",
        "empty.py": "",
        "wrong.py": "from configs import base\ndef get_config():\n    config = base.get_config()\n"
        "    config.train.steps = 'many'\n    return config\n",
        "notes.txt": "",
    }
    name = path.split("/")[-1]
    if name in files:
        (folder / path).write_text(files[name])
    with pytest.raises(ConfigError) as caught:
        command_line.read(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "field", "value"),
    [
        ("--config.train.steps=5", "train.steps", 5),
        ("-config.train.steps=1_000", "train.steps", 1000),
        ("--config.optimizer.learning_rate=1", "optimizer.learning_rate", 1.0),
        ("--config.optimizer.learning_rate=1e-4", "optimizer.learning_rate", 1e-4),
        ("--config.log.tensorboard=false", "log.tensorboard", False),
        ("--noconfig.log.tensorboard", "log.tensorboard", False),
        ("--config.model.remat", "model.remat", True),
        ("--config.model.channel_mult=1,2", "model.channel_mult", (1, 2)),
        ("--config.model.channel_mult=(1, 2)", "model.channel_mult", (1, 2)),
        ("--config.model.channel_mult=4", "model.channel_mult", (4,)),
        ("--config.model.attention_resolutions=()", "model.attention_resolutions", ()),
        ("--config.data.augmentations=flip", "data.augmentations", ("flip",)),
        ("--config.data.augmentations=a,b(c=1, d=2)", "data.augmentations", ("a", "b(c=1, d=2)")),
        ("--config.data.augmentations=b(c=1, d=2)", "data.augmentations", ("b(c=1, d=2)",)),
        ("--config.data.augmentations=('a', 'b')", "data.augmentations", ("a", "b")),
        ("--config.data.source=a(path='/x=y, z')", "data.source", "a(path='/x=y, z')"),
        ("--config.sample.labels=3", "sample.labels", "3"),
        ("--config.sample.ema=None", "sample.ema", "None"),
        ("--config.ema={'fast': 'constant'}", "ema", {"fast": "constant"}),
    ],
)
def test_override(argument, field, value):
    config = base.get_config()
    command_line.override(config, [argument])
    section, name = field.split(".") if "." in field else (None, field)
    got = config[section][name] if section else config[name].to_dict()
    assert got == value
    assert type(got) is type(value)


def test_the_last_override_counts():
    config = base.get_config()
    command_line.override(config, ["--config.train.steps=5", "--config.train.steps=6"])
    command_line.override(config, [f"--config.model.channel_mult={n}" for n in (1, 2)])
    assert config.train.steps == 6
    assert config.model.channel_mult == (2,)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.trian.steps=5", "no such field; did you mean config.train.steps?"),
        ("--config.steps=5", "no such field; did you mean config."),
        (
            "--config.mesh.qqqqqqqqqqqqq=5",
            "there are config.mesh.data, config.mesh.fsdp, config.me",
        ),
        ("--config.train.steps=abc", "--config.train.steps=abc: must be a whole number"),
        ("--config.train.steps=5.0", "--config.train.steps=5.0: must be a whole number"),
        ("--config.train.steps=None", "--config.train.steps=None: must be a whole number"),
        ("--config.train.steps", "--config.train.steps: needs a value"),
        ("--config.optimizer.learning_rate=a", "learning_rate=a: must be a number"),
        ("--config.log.tensorboard=perhaps", "tensorboard=perhaps: must be true or false"),
        ("--config.model.channel_mult=1 2", "channel_mult=1 2: must be a tuple"),
        ("--config.train=5", "--config.train=5: must be a dict"),
    ],
)
def test_override_errors(argument, message):
    with pytest.raises(ConfigError) as caught:
        command_line.override(base.get_config(), [argument])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
