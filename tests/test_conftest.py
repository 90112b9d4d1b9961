import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jaxtyping
import pytest

from training import components

ROOT = Path(__file__).parent.parent


def test_eight_cpu_devices():
    assert jax.device_count() == 8
    assert jax.default_backend() == "cpu"


def test_annotations_of_the_packages_are_checked():
    with pytest.raises(jaxtyping.TypeCheckError):
        components.parse(3)


def test_network_is_refused():
    with pytest.raises(RuntimeError, match="no network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)


@pytest.mark.parametrize(
    ("options", "outcome"),
    [((), "1 passed, 1 deselected"), (("--slow",), "2 passed"), (("-m", "slow"), "1 passed, 1 d")],
)
def test_slow_tests_run_only_when_asked_for(tmp_path, options, outcome):
    (tmp_path / "test_two.py").write_text(
        "import pytest\ndef test_quick(): pass\n@pytest.mark.slow\ndef test_long(): pass\n"
    )
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", tmp_path,
         "-p", "no:cacheprovider", tmp_path, *options],
        capture_output=True, text=True, env=environment, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert outcome in result.stdout, result.stdout + result.stderr
