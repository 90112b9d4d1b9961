import json
import subprocess
import sys
from pathlib import Path

import pytest

from training import command_line, components
from training.config import freeze, validate

FILES = sorted(str(p) for p in Path("configs").glob("*.py") if p.stem not in ("__init__", "base"))


@pytest.mark.parametrize("variant", ["", ":smoke"])
@pytest.mark.parametrize("file", FILES)
def test_config_is_valid(file, variant):
    config = command_line.read(file + variant)
    validate(config)
    components.check(freeze(config))


@pytest.mark.parametrize("file", FILES)
def test_header_says_how_to_run_it(file):
    text = Path(file).read_text()
    assert f"--config={file}" in text.split('"""')[1]


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_smoke_variant_trains_samples_and_previews(file, tmp_path):
    for arguments in ([f"--config={file}:smoke"], ["--mode=sample"]):
        command = [sys.executable, "main.py", f"--workdir={tmp_path}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
    steps = [json.loads(x)["step"] for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [5, 10, 15, 20]
    assert list((tmp_path / "previews").glob("*.png"))
    assert list(tmp_path.glob("samples/*/grid.png"))
