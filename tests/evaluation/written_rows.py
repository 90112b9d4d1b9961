"""Rows of results written by hand, as the evaluation writes them."""

import json

from evaluation import report_rows
from training.workdir import Workdir


def row(values, *, seed=0, metric="edm", count=100, reference="r", **sample):
    """As a protocol writes it."""
    sample = {"ema": "default", "solver": "ddim(eta=0.0)", "steps": 10, "guidance": []} | sample
    step, calls = sample.pop("step", 1000), sample["steps"] * (2 if sample["guidance"] else 1)
    return {
        "metric": metric,
        "values": {"count": count} | values,
        "provenance": {"time": f"2026-01-01T00:00:0{seed}", "code": {"commit": "c0ffee"}},
        "samples": f"step{step}-seed{seed}",
        "count": count,
        "reference": {"path": f"/{reference}.npz", "sha256": reference * 64},
        "reference_name": reference,
        "extractor": {"name": "inception", "sha256": "e" * 64},
        "info": {
            "checkpoint": step,
            "sample": sample | {"seed": seed, "batch_size": 8},
            "model": {"channels": 32},
            "network_calls_per_image": calls,
            "made_by_this_start": 8 * seed,
        },
        "seconds": {"metric": 0.5 + seed},
    }


def write(path, rows, file="edm"):
    directory = Workdir(path).evaluation
    directory.mkdir(parents=True, exist_ok=True)
    lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
    (directory / f"{file}.jsonl").write_text("\n".join(lines) + "\n")
    return path


def tables(path, rows):
    return report_rows.tables(report_rows.read(Workdir(write(path, rows)).evaluation))


def guided(scale, **more):
    return [f"classifier_free(scale={scale}{''.join(f', {k}={v}' for k, v in more.items())})"]
