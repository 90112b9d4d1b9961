import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.test_imports import ALLOWED, imports

ROOT = Path(__file__).parent.parent
PYTHONS = ("3.11", "3.12")
# Modules that are not called as their distribution is.
DISTRIBUTIONS = {
    "absl": "absl-py",
    "orbax": "orbax-checkpoint",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


def requirements(name: str) -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-r ")]


def pins(name: str, python: str) -> dict[str, str]:
    """Version by distribution, as one Python on Linux sees the file."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "sys_platform": "linux",
    }
    return {
        canonicalize_name(r.name): str(r.specifier)
        for r in requirements(name)
        if r.marker is None or r.marker.evaluate(environment)
    }


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("file", sorted(path.name for path in ROOT.glob("requirements*.txt")))
def test_constraints_hold_every_direct_pin(file, python):
    constraints = pins("constraints.txt", python)
    for name, version in pins(file, python).items():
        assert version.startswith("=="), f"{file}: {name} is not pinned"
        assert constraints.get(name) == version, name


def test_constraints_name_no_index_or_file():
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"://|index-url|find-links|file:|[ =]/", text)
    assert "tensorflow" not in pins("constraints.txt", "3.11")


@pytest.mark.parametrize("python", PYTHONS)
def test_accelerators_take_the_same_jax(python):
    jax = pins("requirements.txt", python)["jax"]
    assert pins("requirements-cuda.txt", python) == {"jax": jax}
    assert pins("requirements-tpu.txt", python) == {"jax": jax}


def test_every_import_is_a_direct_requirement():
    run = {canonicalize_name(r.name) for r in requirements("requirements.txt")}
    test = run | {canonicalize_name(r.name) for r in requirements("requirements-test.txt")}
    for package in [*ALLOWED, "tests"]:
        for file in [*ROOT.glob(f"{package}.py"), *(ROOT / package).rglob("*.py")]:
            if (ROOT / "tests" / "golden") in file.parents:
                continue  # these run in other people's environments
            if file.parent.name == "benchmarks" and file.name.startswith("against_"):
                continue  # and so does PyTorch's side of a comparison
            modules = imports(file, package) - sys.stdlib_module_names - {*ALLOWED, "tests"}
            needed = {canonicalize_name(DISTRIBUTIONS.get(m, m)) for m in modules}
            missing = needed - (test if package == "tests" else run)
            assert not missing, f"{file.relative_to(ROOT)} imports {missing}"
