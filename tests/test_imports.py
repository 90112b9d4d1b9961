"""Who may import whom (docs/architecture.md), and how long a file may be."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_LINES = 450

BOTTOM = {"diffusion", "models", "input_pipeline"}
TRAINING = BOTTOM | {"training", "configs"}
TOP = TRAINING | {"pipelines", "evaluation", "benchmarks"}
# Packages of this repository that each one may import.
ALLOWED = {
    "configs": {"configs"},
    "diffusion": {"diffusion"},
    "models": {"models"},
    "input_pipeline": {"input_pipeline"},
    "training": TRAINING,
    "pipelines": TOP,
    "evaluation": TOP,
    "benchmarks": TOP,
    "experiments": TOP | {"experiments"},
    "main": TOP,
    # What starts runs checks their configs first, with main.py's own parser.
    "launch": {"launch", "training", "configs", "main"},
}
# Packages of others that each one may not import: the mathematics knows no networks, configs or
# disk, networks know no configs or optimizers, data knows no networks or configs.
FORBIDDEN = {
    "diffusion": {"flax", "optax", "orbax", "ml_collections", "etils", "grain", "absl"},
    "models": {"optax", "orbax", "ml_collections", "grain", "absl"},
    "input_pipeline": {"flax", "optax", "orbax", "ml_collections"},
    # It runs on hosts that have no accelerator, and outlives processes that do.
    "launch": {"jax", "flax", "optax", "orbax"},
}


def imports(file: Path, package: str) -> set[str]:
    """Top-level names of all modules that a file imports, at its top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(package if node.level else node.module.split(".")[0])
    return names


def violations(root: Path) -> list[str]:
    """What is wrong in a tree, one line each."""
    packages = {file.parent.name for file in root.glob("*/__init__.py")} - {"tests"}
    wrong = [f"{name}: not in the table of packages" for name in packages - set(ALLOWED)]
    sources = [*root.glob("*.py"), *(f for name in packages for f in (root / name).rglob("*.py"))]
    for file in sources:
        package = file.relative_to(root).parts[0].removesuffix(".py")
        names = imports(file, package)
        bad = names & (packages | set(ALLOWED)) - ALLOWED.get(package, set())
        bad |= names & FORBIDDEN.get(package, set())
        if package == "configs":
            bad = names - sys.stdlib_module_names - {"configs", "ml_collections"}
        wrong += [f"{file.relative_to(root)}: imports {name}" for name in sorted(bad)]
    for file in [*sources, *(root / "tests").rglob("*.py")]:
        lines = len(file.read_text().splitlines())
        if lines > MAX_LINES:
            wrong.append(f"{file.relative_to(root)}: {lines} lines")
    return sorted(wrong)


def test_this_tree():
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("diffusion/a.py", "import models.unet", "diffusion/a.py: imports models"),
        ("models/a.py", "def f():\n    from training import loop", "models/a.py: imports training"),
        ("models/pretrained/a.py", "import diffusion", "models/pretrained/a.py: imports diffusion"),
        ("training/a.py", "from evaluation import job", "training/a.py: imports evaluation"),
        ("training/a.py", "import main", "training/a.py: imports main"),
        ("diffusion/a.py", "from configs import base", "diffusion/a.py: imports configs"),
        ("diffusion/a.py", "from flax import nnx", "diffusion/a.py: imports flax"),
        ("configs/a.py", "import numpy", "configs/a.py: imports numpy"),
        ("training/a.py", "x = 1\n" * (MAX_LINES + 1), "training/a.py: 451 lines"),
        ("tests/test_a.py", "x = 1\n" * (MAX_LINES + 1), "tests/test_a.py: 451 lines"),
        ("utils/__init__.py", "", "utils: not in the table of packages"),
    ],
)
def test_a_bad_tree_is_found_out(tmp_path, path, text, expected):
    for package in ALLOWED.keys() - {"main"}:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("from . import a\n")
    (tmp_path / "main.py").write_text("import training\n")
    assert violations(tmp_path) == []
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text)
    assert violations(tmp_path) == [expected]
