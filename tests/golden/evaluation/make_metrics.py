"""Metrics of the sets of sets.py by the programs that published them; writes metrics.json.

    python make_metrics.py EVALUATOR CMMD

Needs torch, torch-fidelity 0.4, prdc, vendi-score, scikit-image and scipy. EVALUATOR is
evaluations/evaluator.py of github.com/openai/guided-diffusion, CMMD is cmmd/distance.py of
github.com/google-research/google-research. Neither TensorFlow nor JAX: the few functions that the
two files call of them are numpy's here, so guided-diffusion's own order of operations runs in
numpy's float16, and CMMD's in float64.
"""

import contextlib
import importlib.util
import json
import pathlib
import sys
import types
from unittest import mock

import numpy as np
import prdc
import torch
from sets import alike, embeddings, features, frechet_pairs, images, logits, pair
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

# torchvision declares these two in a part of it that not every build has.
for name in ("nms", "qnms"):
    with contextlib.suppress(RuntimeError):
        torch.library.define(
            f"torchvision::{name}", "(Tensor dets, Tensor scores, float threshold) -> Tensor"
        )
from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc  # noqa: E402
from vendi_score import vendi  # noqa: E402


def load(path: str, modules: dict):
    """A file as a module, where some modules are others."""
    with mock.patch.dict(sys.modules, modules):
        spec = importlib.util.spec_from_file_location("loaded", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def tensorflow():
    tf = types.SimpleNamespace(
        variable_scope=lambda name: contextlib.nullcontext(),
        reduce_sum=lambda x, axis: np.sum(x, axis=axis),
        square=np.square,
        reshape=np.reshape,
        maximum=np.maximum,
        matmul=lambda a, b, _, transposed: np.matmul(a, b.T),
    )
    compat = types.SimpleNamespace(v1=tf)
    package = types.SimpleNamespace(compat=compat)
    return {"tensorflow": package, "tensorflow.compat": compat, "tensorflow.compat.v1": tf}


def distance_block(adm):
    """Its DistanceBlock without a session."""

    def distances(first, second):
        with np.errstate(over="ignore", invalid="ignore"):
            half = adm._batch_pairwise_distances(*(x.astype(np.float16) for x in (first, second)))
        if np.isfinite(half).all():
            return half.astype(np.float32)
        return adm._batch_pairwise_distances(first, second)

    def less_thans(first, radii_first, second, radii_second):
        block = distances(first, second)[..., None]
        return (block <= radii_second).any(axis=1), (block <= radii_first[:, None]).any(axis=0)

    return types.SimpleNamespace(pairwise_distances=distances, less_thans=less_thans)


def adm_precision_recall(adm, generated, reference):
    with mock.patch.object(adm, "DistanceBlock", return_value=distance_block(adm)):
        evaluator = types.SimpleNamespace(manifold_estimator=adm.ManifoldEstimator(None))
    return adm.Evaluator.compute_prec_recall(evaluator, reference, generated)


def adm_inception_score(adm, given, size):
    def run(_, feed_dict):
        (x,) = feed_dict.values()
        return torch.tensor(x).double().softmax(1).numpy()

    session = types.SimpleNamespace(run=run)
    evaluator = types.SimpleNamespace(
        sess=session, softmax_batch_size=512, softmax=None, softmax_input="x"
    )
    return adm.Evaluator.compute_inception_score(evaluator, given, size)


def main() -> None:
    adm = load(sys.argv[1], tensorflow())
    jax = types.SimpleNamespace(jit=lambda f: f, numpy=np)
    cmmd = load(sys.argv[2], {"jax": jax, "jax.numpy": np})
    found = {"frechet": {}}
    for name, given in frechet_pairs().items():
        x, y = (z.astype(np.float64) for z in given)
        first, second = (metric_fid.fid_features_to_statistics(torch.tensor(z)) for z in (x, y))
        statistics = [adm.FIDStatistics(s["mu"], s["sigma"]) for s in (first, second)]
        found["frechet"][name] = {
            "guided-diffusion": float(statistics[0].frechet_distance(statistics[1])),
            "torch-fidelity": metric_fid.fid_statistics_to_metric(first, second, False)[
                metric_fid.KEY_METRIC_FID
            ],
        }
    x, y = pair()
    double = [torch.tensor(z).double() for z in (x, y)]
    found["kid"] = {
        name: metric_kid.kid_features_to_metric(
            *(torch.tensor(z).double() for z in given),
            kid_subsets=20,
            kid_subset_size=300,
            verbose=False,
        )
        for name, given in (("apart", (x, y)), ("alike", alike()))
    }
    found["inception_score"] = metric_isc.isc_features_to_metric(torch.tensor(logits())) | {
        "guided-diffusion": {
            str(size): adm_inception_score(adm, logits(), size) for size in (100, 300)
        }
    }
    found["precision_recall"] = {
        "torch-fidelity": metric_prc.prc_features_to_metric(*double, verbose=False),
        "guided-diffusion": adm_precision_recall(adm, x, y),
        # Squared distances that float16 does not reach.
        "guided-diffusion, large": adm_precision_recall(adm, 60 * x, 60 * y),
    }
    found["prdc"] = {
        str(k): {
            name: float(value)
            for name, value in prdc.compute_prdc(
                y.astype(np.float64), x.astype(np.float64), k
            ).items()
        }
        for k in (3, 5)
    }
    found["cmmd"] = float(cmmd.mmd(*embeddings()))
    found["vendi"] = {
        "many": float(vendi.score_dual(x.astype(np.float64))),
        "few": float(vendi.score_X(features(5, 30).astype(np.float64))),
    }
    ours, references = images()
    found["psnr"] = [
        float(peak_signal_noise_ratio(b, a, data_range=255)) if (a != b).any() else None
        for a, b in zip(ours, references, strict=True)
    ]
    found["ssim"] = [
        float(
            structural_similarity(
                a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                data_range=255, channel_axis=-1,
            )
        )
        for a, b in zip(ours, references, strict=True)
    ]  # fmt: skip
    path = pathlib.Path(__file__).with_name("metrics.json")
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
