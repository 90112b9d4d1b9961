"""Manifests against the published schema of a JobSet, and a kubectl that stands in for it."""

import copy
import json
import os
from pathlib import Path

import pytest
import yaml

from launch.__main__ import main
from tests.launch.programs import ROOT, fake

SCHEMA = json.loads((ROOT / "tests" / "golden" / "launch" / "jobset.json").read_text())
KINDS = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
TPU = ["--tpu=tpu-v6e-slice", "--topology=4x4", "--slices=2", "--service-account=trainer"]
GPU = ["--gpus=8", "--nodes=4", "--node-selector=cloud.google.com/gke-spot=true"]


def mistakes(value, schema: dict, path: str = "jobset") -> list[str]:
    """Where a value is not as its schema says."""
    kinds = schema.get("type", [])
    kinds = [KINDS[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds)]
    if kinds and type(value) not in kinds:
        return [f"{path}: {type(value).__name__}"]
    found = [f"{path}: {value}"] if value not in schema.get("enum", [value]) else []
    if isinstance(value, list):
        for item in value:
            found += mistakes(item, schema["items"], f"{path}[]")
    if isinstance(value, dict):
        known = schema.get("properties", {})
        found += [f"{path}: no {name}" for name in schema.get("required", []) if name not in value]
        for name, inner in value.items():
            other = schema.get("additionalProperties")
            if name in known or other:
                found += mistakes(inner, known.get(name, other), f"{path}.{name}")
            elif path != "jobset.metadata":
                found.append(f"{path}: unknown {name}")
    return found


def manifests(capsys, *given: str) -> list[dict]:
    fixed = ["--config=configs/digits.py:smoke", "--workdir=gs://b/run", "--image=registry/image:1"]
    assert main(["k8s", *fixed, "--dry-run", *given]) == 0
    return list(yaml.safe_load_all(capsys.readouterr().out))


def parts(manifest: dict) -> tuple[dict, dict, dict]:
    """Of the one replicated job: itself, its pod, its container."""
    (group,) = manifest["spec"]["replicatedJobs"]
    pod = group["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return group, pod, container


@pytest.mark.parametrize("given", [TPU, GPU, ["--gpus=1"], [*TPU, "--namespace=n", "--label=a=b"]])
def test_manifests_are_as_the_schema_says(capsys, given):
    (manifest,) = manifests(capsys, *given)
    assert mistakes(manifest, SCHEMA) == []


def test_the_check_finds_mistakes(capsys):
    (good,) = manifests(capsys, *GPU)
    for change, said in [
        (lambda m: m["spec"].pop("replicatedJobs") and m["spec"].update(jobs=[]), "unknown jobs"),
        (lambda m: parts(m)[0].pop("name"), "no name"),
        (lambda m: parts(m)[0].update(replicas="1"), "replicas: str"),
        (lambda m: m["spec"]["failurePolicy"]["rules"][0].update(action="Fail"), "action: Fail"),
        (lambda m: parts(m)[2].update(arguments=[]), "unknown arguments"),
    ]:
        bad = copy.deepcopy(good)
        change(bad)
        assert any(said in mistake for mistake in mistakes(bad, SCHEMA)), said


def test_tpu_slices(capsys):
    (manifest,) = manifests(capsys, *TPU, "--restarts=7", "--grace=60")
    group, pod, container = parts(manifest)
    assert group["replicas"] == 2
    assert group["template"]["spec"]["parallelism"] == 4  # 16 chips, 4 on each node
    assert group["template"]["spec"]["completions"] == 4
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["terminationGracePeriodSeconds"] == 60
    assert pod["serviceAccountName"] == "trainer"
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 7
    assert not any("coordinator" in word for word in container["command"])


def test_gpu_nodes_find_each_other(capsys):
    (manifest,) = manifests(capsys, *GPU, "--name=train")
    group, pod, container = parts(manifest)
    assert (group["replicas"], group["template"]["spec"]["completions"]) == (1, 4)
    # <jobSet>-<replicatedJob>-<job index>-<pod index>.<subdomain>, as the schema describes it.
    assert f"--coordinator=train-{group['name']}-0-0.train:8476" in container["command"]
    assert manifest["spec"]["network"]["subdomain"] == "train"
    assert {"--processes=4", "--process=$(PROCESS)"} <= set(container["command"])
    (process,) = [one for one in container["env"] if one["name"] == "PROCESS"]
    assert "job-completion-index" in process["valueFrom"]["fieldRef"]["fieldPath"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert pod["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}


def test_statuses_that_end_the_set(capsys):
    (manifest,) = manifests(capsys, *GPU)
    job = parts(manifest)[0]["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["values"] == [2, 3]
    assert rule["onExitCodes"]["containerName"] == parts(manifest)[2]["name"]
    # Any other fails its Job for another reason, for which the set starts again.
    assert job["backoffLimit"] == 0
    assert parts(manifest)[1]["restartPolicy"] == "Never"
    (rule,) = manifest["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


def test_a_sweep_is_one_job_set_each(capsys):
    made = manifests(capsys, *TPU, "--sweep", "config.seed=0,1")
    assert [manifest["metadata"]["name"] for manifest in made] == ["run-0", "run-1"]
    for seed, manifest in enumerate(made):
        command = parts(manifest)[2]["command"]
        assert f"--workdir=gs://b/run/seed={seed}" in command
        assert f"--config.seed={seed}" in command


def test_values_are_handed_on_as_they_are(capsys):
    (manifest,) = manifests(capsys, *GPU, "--env=A=$(HOME) 'b'", "--mode=inspect", "--directory=/c")
    container = parts(manifest)[2]
    # $$ stands for $.
    assert {"name": "A", "value": "$$(HOME) 'b'"} in container["env"]
    assert container["workingDir"] == "/c"
    assert "--mode=inspect" in container["command"]


def test_it_is_applied(tmp_path, monkeypatch, capsys):
    commands = fake(
        tmp_path / "bin", "kubectl", f'#!/bin/sh\necho "$@" >{tmp_path}/a\ncat >{tmp_path}/b\n'
    )
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    given = ["--config=configs/digits.py", "--workdir=gs://b/run", "--image=i", *GPU]
    assert main(["k8s", *given]) == 0
    assert Path(tmp_path / "a").read_text().strip() == "apply -f -"
    assert mistakes(yaml.safe_load((tmp_path / "b").read_text()), SCHEMA) == []
    fake(commands, "kubectl", "#!/bin/sh\nexit 1\n")
    assert main(["k8s", *given]) == 2
    assert "kubectl apply ended with status 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--gpus=8"], "--image is missing"),
        (["--image=i"], "--tpu=tpu-v6e-slice"),
        (["--image=i", "--gpus=1", "--tpu=t", "--topology=2x2"], "take one of"),
        (["--image=i", "--tpu=t"], "--topology=None: must be like"),
        (["--image=i", "--tpu=t", "--topology=3x3"], "multiple of --chips-per-node=4"),
        (["--image=i", "--gpus=1", "--label=a"], "LABEL=VALUE"),
        (["--image=i", "--gpus=1", "--nodes=0"], "--nodes=0"),
    ],
)
def test_wrong_options_are_told(capsys, given, said):
    fixed = ["--config=configs/digits.py", "--workdir=gs://b/a", "--dry-run"]
    assert main(["k8s", *fixed, *given]) == 2
    assert said in capsys.readouterr().err
