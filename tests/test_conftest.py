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


def inner_pytest(folder, *options):
    """Runs pytest on the tests of a folder, under this conftest and these settings."""
    (folder / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    settings = ["-c", ROOT / "pyproject.toml", "--rootdir", folder, "-o", f"pythonpath={folder}"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *settings, "-p", "no:cacheprovider", folder, *options],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        check=False,
    )


@pytest.mark.parametrize(
    ("options", "outcome"),
    [((), "1 passed, 1 deselected"), (("--slow",), "2 passed"), (("-m", "slow"), "1 passed, 1 d")],
)
def test_slow_tests_run_only_when_asked_for(tmp_path, options, outcome):
    (tmp_path / "test_two.py").write_text(
        "import pytest\ndef test_quick(): pass\n@pytest.mark.slow\ndef test_long(): pass\n"
    )
    result = inner_pytest(tmp_path, *options)
    assert outcome in result.stdout, result.stdout + result.stderr


def test_shapes_and_numbers_are_checked_and_options_are_left_to_the_code(tmp_path):
    (tmp_path / "test_hook.py").write_text(
        "import jaxtyping, numpy as np, pytest\n"
        "from diffusion.made_up import f\n"
        "def test_f():\n"
        "    good = np.zeros((2, 3), np.float32)\n"
        "    assert f(good, good[0], 1, 'c', 2) == 'c'\n"
        "    for wrong in ((good, good[:, 0], 1, 'a', 2), (good, good[0], 1, 3, 2),\n"
        "                  (good, good[0], 'x', 'a', 2), (good, good[0], 1, 'a', 7)):\n"
        "        with pytest.raises(jaxtyping.TypeCheckError):\n"
        "            f(*wrong)\n"
    )
    (tmp_path / "diffusion").mkdir()
    (tmp_path / "diffusion" / "made_up.py").write_text(
        "from typing import Literal\n"
        "import numpy as np\n"
        "from jaxtyping import Float\n"
        "def f(x: Float[np.ndarray, 'batch width'], y: Float[np.ndarray, ' width'],\n"
        "      z: float, option: Literal['a', 'b'], count: Literal[1, 2]) -> str:\n"
        "    return option\n"
    )
    result = inner_pytest(tmp_path)
    assert "1 passed" in result.stdout, result.stdout + result.stderr
