"""torch-fidelity's or clean-fid's side of a comparison: metrics of features that are in files.

A program of its own for an interpreter that has them; `benchmarks.peer` starts it and speaks with
it in lines of JSON, as with `benchmarks.against_diffusers`. The job is {"package": , "folder": };
the folder has generated.npy, reference.npy and logits.npy. A step is every metric of the package,
and its answer has "parts", seconds of each, and "values".
"""

import contextlib
import json
import os
import resource
import sys
import time


def main() -> None:
    """Answers on stdout, where nothing else may print; ends with stdin."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: dict) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        about, metrics = build(json.loads(sys.stdin.readline()))
        answer(about)
        for _ in sys.stdin:
            parts, values = {}, {}
            for name, metric in metrics.items():
                before = time.perf_counter()
                values[name] = metric()
                parts[name] = time.perf_counter() - before
            # The threads of OpenMP spin for a while before they sleep.
            time.sleep(0.05)
            unit = 1 if sys.platform == "darwin" else 1024
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
            seconds = sum(parts.values())
            answer({"seconds": seconds, "peak_bytes": peak, "parts": parts, "values": values})
    except Exception as error:  # whatever it is, the other side has to know
        answer({"error": f"{type(error).__name__}: {error}"})


def build(job: dict):
    """(description, metrics by name as functions without arguments) of a job."""
    import torch

    # torchvision declares these in a part of it that not every build has.
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):
            torch.library.define(
                f"torchvision::{name}", "(Tensor dets, Tensor scores, float threshold) -> Tensor"
            )
    names = ("generated", "reference", "logits")
    arrays = [os.path.join(job["folder"], f"{name}.npy") for name in names]
    package = {"torch-fidelity": torch_fidelity, "clean-fid": clean_fid}[job["package"]]
    about = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    version, metrics = package(*arrays)
    return about | {"version": version}, metrics


def torch_fidelity(generated: str, reference: str, logits: str):
    """Its metrics of features, by their own defaults."""
    from importlib import metadata

    import numpy as np
    import torch
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    x, y, z = (torch.from_numpy(np.load(path)) for path in (generated, reference, logits))

    def fid() -> float:
        statistics = [metric_fid.fid_features_to_statistics(s) for s in (x, y)]
        return metric_fid.fid_statistics_to_metric(*statistics, False)[metric_fid.KEY_METRIC_FID]

    def kid() -> float:
        return metric_kid.kid_features_to_metric(x, y, verbose=False)[
            metric_kid.KEY_METRIC_KID_MEAN
        ]

    def precision_recall() -> list[float]:
        found = metric_prc.prc_features_to_metric(x, y, verbose=False)
        return [found[metric_prc.KEY_METRIC_PRECISION], found[metric_prc.KEY_METRIC_RECALL]]

    metrics = {
        "FID": fid,
        "KID": kid,
        "inception score": lambda: metric_isc.isc_features_to_metric(z)[
            metric_isc.KEY_METRIC_ISC_MEAN
        ],
        "precision, recall": precision_recall,
    }
    return metadata.version("torch-fidelity"), metrics


def clean_fid(generated: str, reference: str, _logits: str):
    """Its two metrics of features; its KID draws other subsets at each call."""
    from importlib import metadata

    import numpy as np
    from cleanfid import fid as package

    x, y = np.load(generated), np.load(reference)

    def fid() -> float:
        statistics = [m for s in (x, y) for m in (np.mean(s, axis=0), np.cov(s, rowvar=False))]
        return float(package.frechet_distance(*statistics))

    metrics = {"FID": fid, "KID": lambda: package.kernel_distance(y, x)}
    return metadata.version("clean-fid"), metrics


if __name__ == "__main__":
    main()
