"""Checks the numbers of an installation against stored ones, which other programs computed.

    python -m evaluation.selftest
    python -m evaluation.selftest --weights=data/weights

Resizing and Inception run on the devices that are at hand, with the precision that evaluations
use and generated weights: a minute on a CPU. The numbers of torch-fidelity, pytorch-fid, clean-fid
and guided-diffusion that they are compared with are those of the tests. With --weights it also
looks which published weights are there, and whether they are what they are called. Exit code 1
where something is off.
"""

import argparse
import json
import runpy
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from safetensors.numpy import save_file

from evaluation import metrics, weights
from evaluation.extractors import EXTRACTORS, Runner
from evaluation.resize import RESIZES
from training.components import ConfigError

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
# Resizes and scalings of the network's input, as the stored features are called.
_KINDS = {"tf1": ("tf1", "128"), "pytorch_fid": ("torch", "127.5"), "clean": ("clean", "128")}


class Check(NamedTuple):
    """A difference from a stored number, and the most that it may be."""

    name: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Not where the error is no number."""
        return self.error <= self.allowed


def resizes() -> Iterator[Check]:
    """Resizing to 32 px, in steps of a pixel's 255."""
    images = runpy.run_path(str(GOLDEN / "models" / "inception_weights.py"))["images"]
    expected = np.load(GOLDEN / "evaluation" / "resize.npz")
    for name in ("tf1", "torch", "antialiased"):
        for side in (20, 45):
            found = jax.jit(RESIZES[name], static_argnums=1)(np.float32(images(side)), 32)
            error = np.abs(np.asarray(found) - expected[f"{name}/{side}"]).max()
            yield Check(f"resize {name}, {side} to 32 px", float(error), 1e-3)


def inception() -> Iterator[Check]:
    """Inception's features of two images of each size, with generated weights."""
    rule = runpy.run_path(str(GOLDEN / "models" / "inception_weights.py"))
    shapes = json.loads((GOLDEN / "models" / "inception.json").read_text())
    expected = np.load(GOLDEN / "models" / "inception.npz")
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "inception.safetensors")
        save_file({name: rule["tensor"](name, shape) for name, shape in shapes.items()}, path)
        for kind, (resize, scaling) in _KINDS.items():
            see = Runner(EXTRACTORS["inception"](resize=resize, scaling=scaling, path=path))
            for side in rule["SIDES"]:
                found = see(rule["images"](side))
                for output in found if kind == "tf1" else ("pool3",):
                    stored = expected[f"{side}/{output if kind == 'tf1' else kind}"]
                    error = np.abs(found[output] - stored).max()
                    yield Check(f"inception {kind}, {side} px, {output}", float(error), 1e-4)


def distances() -> Iterator[Check]:
    """Metrics of generated features, relative to the stored values."""
    sets = runpy.run_path(str(GOLDEN / "evaluation" / "sets.py"))
    stored = json.loads((GOLDEN / "evaluation" / "metrics.json").read_text())
    for name, pair in sets["frechet_pairs"]().items():
        found, wanted = metrics.frechet_distance(*pair).distance, stored["frechet"][name]
        wanted = wanted["torch-fidelity"]
        error = abs(found - wanted) / max(abs(wanted), 1.0)
        yield Check(f"Frechet distance, {name}", float(error), 1e-6)
    pair = sets["pair"]()
    spread = metrics.prdc(*pair, neighbours=5)
    for name, found, wanted in (
        (
            "KID",
            metrics.kid(*pair, subsets=20, subset_size=300).mean,
            stored["kid"]["apart"]["kernel_inception_distance_mean"],
        ),
        (
            "inception score",
            metrics.inception_score(sets["logits"]()).mean,
            stored["inception_score"]["inception_score_mean"],
        ),
        *((name, getattr(spread, name), value) for name, value in stored["prdc"]["5"].items()),
    ):
        yield Check(name, abs(found - wanted) / abs(wanted), 1e-5)


def published(directory: str) -> Iterator[str]:
    """A line for each file of published weights."""
    for name, known in weights.KNOWN.items():
        path = Path(directory) / known.file
        if not path.exists():
            yield f"  absent  {name}: {known.file}"
            continue
        try:
            weights.locate(name, directory=directory)
            yield f"  there   {name}: {path}"
        except ConfigError as error:
            yield f"  WRONG   {name}: {error}"


def main(arguments: list[str] | None = None) -> int:
    """Runs all checks; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="", help="directory with published weights")
    directory = parser.parse_args(arguments).weights
    if not GOLDEN.is_dir():
        print(f"{GOLDEN}: the stored numbers are not there; run it in a checkout", file=sys.stderr)
        return 2
    print(
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}", flush=True
    )
    failed = 0
    for checks in (resizes, inception, distances):
        for check in checks():
            failed += not check.passed
            word = "ok   " if check.passed else "WRONG"
            print(
                f"  {word} {check.name}: {check.error:.1e}, allowed {check.allowed:.0e}", flush=True
            )
    for line in published(directory) if directory else ():
        failed += line.startswith("  WRONG")
        print(line, flush=True)
    print("all as it should be" if not failed else f"{failed} wrong")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
