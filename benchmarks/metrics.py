"""Times the metrics of features, beside torch-fidelity and clean-fid on the same features.

    python -m benchmarks.metrics [--count=10000] [--dims=2048] [--more] [--json=out.json] \\
        [--against=torch-fidelity,clean-fid] [--peer-python=/path/to/python]

The features are drawn, in the likeness of Inception's: not negative, a decaying spectrum, squared
mean 264 and trace of the covariance 225 at 2048 dimensions. All work is on the host. The programs
take turns; the table has the best of the rounds, as other programs only ever slow one down.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from benchmarks import command
from benchmarks.peer import Peer, PeerError
from evaluation import metrics
from training.workdir import provenance

PACKAGES = ("torch-fidelity", "clean-fid")
PROGRAM = Path(__file__).with_name("against_fidelity.py")
_CLASSES = 1008
# Squared mean and trace of the covariance of Inception's features, each over 2048 dimensions.
_SQUARED_MEAN, _TRACE = 264.0 / 2048, 225.0 / 2048


def main(arguments: Sequence[str]) -> None:
    """Reads the flags, measures, prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=10000, help="examples of either set")
    parser.add_argument("--dims", type=int, default=2048, help="of the features")
    parser.add_argument("--rounds", type=int, default=1, help="times that each is measured")
    parser.add_argument("--more", action="store_true", help="also what the others do not have")
    parser.add_argument("--against", default="", help=f"of {','.join(PACKAGES)}, in turn")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has them")
    parser.add_argument("--json", help="file for the result")
    flags = parser.parse_args(arguments)
    packages = list(filter(None, flags.against.split(",")))
    if not set(packages) <= set(PACKAGES):
        parser.error(f"--against={flags.against}: allowed are {','.join(PACKAGES)}")
    if flags.count < 1000 or flags.dims < 1 or flags.rounds < 1:
        parser.error("--count must be at least 1000 (a subset of KID), --dims and --rounds 1")
    try:
        result = measure(
            flags.count, flags.dims, flags.rounds, flags.more, packages, flags.peer_python
        )
    except PeerError as error:
        parser.error(str(error))
    print(table(result))
    command.write_json(flags.json, result)


def measure(
    count: int,
    dims: int,
    rounds: int,
    more: bool,
    packages: Sequence[str],
    python: str,
    program: Path = PROGRAM,
) -> dict[str, Any]:
    """Seconds and values of every metric, ours and theirs.

    Raises:
        PeerError: one of the packages cannot do its part.
    """
    generated, reference = features(1, count, dims), features(2, count, dims, scale=1.05)
    logits = np.random.default_rng(3).normal(0.0, 2.0, (count, _CLASSES)).astype(np.float32)
    ours, theirs = [], {package: [] for package in packages}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        peers = {}
        if packages:
            sets = {"generated": generated, "reference": reference, "logits": logits}
            for name, array in sets.items():
                np.save(Path(folder) / f"{name}.npy", array)
        for package in packages:
            job = {"package": package, "folder": folder}
            peers[package] = stack.enter_context(Peer(python, job, program, package))
        for _ in range(rounds):
            ours.append(timed(of_features(generated, reference, logits)))
            for package, peer in peers.items():
                peer()
                theirs[package].append(peer.last)
        result = {"count": count, "dims": dims, "rounds": rounds, "ours": best(ours)}
        result["peers"] = {
            package: {"about": peer.about, "peak_bytes": peer.peak_bytes} | best(theirs[package])
            for package, peer in peers.items()
        }
    unit = 1 if sys.platform == "darwin" else 1024
    result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if more:
        result["more"] = best([timed(others(generated, reference)) for _ in range(rounds)])
    return result | {"provenance": provenance()}


def features(
    seed: int, count: int, dims: int, scale: float = 1.0
) -> Float[np.ndarray, "count dim"]:
    """Rectified Gaussians of a decaying spectrum, in one random basis for all seeds, float32."""
    rng = np.random.default_rng(seed)
    spectrum = np.arange(1, dims + 1) ** -0.4
    mix = np.random.default_rng(0).normal(size=(dims, dims)).astype(np.float32)
    # Each of the Gaussians has variance 1 before the shift.
    mix *= (spectrum / np.linalg.norm(spectrum)).astype(np.float32)[:, None]
    x = rng.standard_normal((count, dims), np.float32) @ mix
    # The normal that has the moments above once it is rectified.
    x *= scale * 1.2349 * np.sqrt(_TRACE)
    x += 0.8491 * np.sqrt(_SQUARED_MEAN)
    return np.maximum(x, 0.0, out=x)


def of_features(
    generated: np.ndarray, reference: np.ndarray, logits: np.ndarray
) -> dict[str, Callable[[], Any]]:
    """What is compared, by name, at the defaults of torch-fidelity; and PRDC."""

    def precision_recall() -> list[float]:
        found = metrics.precision_recall(generated, reference)
        return [found.precision, found.recall]

    def prdc() -> list[float]:
        found = metrics.prdc(generated, reference)
        return [found.precision, found.recall, found.density, found.coverage]

    return {
        "FID": lambda: metrics.frechet_distance(generated, reference).distance,
        "KID": lambda: metrics.kid(generated, reference).mean,
        "inception score": lambda: metrics.inception_score(logits).mean,
        "precision, recall": precision_recall,
        "PRDC": prdc,
    }


def others(generated: np.ndarray, reference: np.ndarray) -> dict[str, Callable[[], Any]]:
    """What the others do not have, by name."""
    kept = metrics.Moments.of(reference)
    return {
        "root of the reference": lambda: float(np.trace(kept.root)),
        "FID, reference kept": lambda: metrics.frechet_distance(generated, kept).distance,
        "FID-infinity": lambda: metrics.frechet_infinity(generated, kept).distance,
        "KID, all pairs": lambda: metrics.kid_full(generated, reference),
        "CMMD": lambda: metrics.cmmd(generated, reference),
        "Vendi score": lambda: metrics.vendi_score(generated),
    }


def timed(calls: Mapping[str, Callable[[], Any]]) -> dict[str, dict[str, Any]]:
    """{"parts": seconds, "values": } of each."""
    parts, values = {}, {}
    for name, call in calls.items():
        before = time.perf_counter()
        values[name] = call()
        parts[name] = time.perf_counter() - before
    return {"parts": parts, "values": values}


def best(rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Least seconds of each part; the values of the first round."""
    parts = {name: min(r["parts"][name] for r in rounds) for name in rounds[0]["parts"]}
    return {"seconds": parts, "values": rounds[0]["values"]}


def table(result: Mapping[str, Any]) -> str:
    """A row a metric: seconds and values, ours, then theirs."""
    peers = result["peers"]
    lines = [f"{result['count']:,} examples of {result['dims']:,} dimensions, best of "]
    lines[0] += f"{result['rounds']}; seconds and value"
    names = ["", "ours", *peers]
    lines.append("".join(f"{name:24}" for name in names).rstrip())
    sides = [result["ours"], *peers.values()]
    for name in result["ours"]["seconds"]:
        cells = [
            f"{side['seconds'][name]:6.2f} {spell(side['values'][name])}"
            if name in side["seconds"]
            else ""
            for side in sides
        ]
        lines.append("".join(f"{cell:24}" for cell in [name, *cells]).rstrip())
    lines.append(f"{'all':24}{sum(result['ours']['seconds'].values()):6.2f}")
    for package, peer in peers.items():
        shared = [result["ours"]["seconds"][name] for name in peer["seconds"]]
        total = sum(peer["seconds"].values())
        lines.append(
            f"{package}'s {len(shared)} metrics: {total:.2f} s, ours {sum(shared):.2f} s, "
            f"{total / sum(shared):.1f} times faster"
        )
    for name, seconds in result.get("more", {"seconds": {}})["seconds"].items():
        lines.append(f"{name:24}{seconds:6.2f} {spell(result['more']['values'][name])}")
    return "\n".join(lines)


def spell(value: float | Sequence[float]) -> str:
    """Five digits of each number."""
    return " ".join(f"{v:.5g}" for v in (value if isinstance(value, list) else [value]))


if __name__ == "__main__":
    main(sys.argv[1:])
