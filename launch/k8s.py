"""Runs on Kubernetes: a JobSet for each job, for TPU slices of GKE or for GPUs.

Its fields are those of jobset.x-k8s.io/v1alpha2 (https://jobset.sigs.k8s.io).
"""

import argparse
import math
import re
import subprocess
from collections.abc import Sequence
from typing import Any

import yaml

from launch.job import Job, resource_names
from launch.remote import portable
from training.components import ConfigError
from training.exit_codes import FAILED, MISTAKE

CONTAINER = "main"
# Where process 0 of a run on GPUs listens; on TPU JAX finds that out by itself.
PORT = 8476
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this launcher alone."""
    parser.add_argument("--image", help="with this repository and its requirements")
    parser.add_argument("--directory", help="of the repository in the image; default: the image's")
    parser.add_argument("--tpu", help="cloud.google.com/gke-tpu-accelerator: tpu-v6e-slice ...")
    parser.add_argument("--topology", help="of a slice: 4x4, 2x2x4 ...")
    parser.add_argument("--chips-per-node", type=int, default=4)
    parser.add_argument("--slices", type=int, default=1, help="of that topology, as one run")
    parser.add_argument("--gpus", type=int, help="of each node, one process with all of them")
    parser.add_argument("--nodes", type=int, default=1, help="with GPUs")
    parser.add_argument("--name", help="of the JobSet; default: the work directory's")
    parser.add_argument("--namespace")
    parser.add_argument("--service-account", help="with access to the bucket")
    parser.add_argument(
        "--node-selector", action="append", default=[], metavar="LABEL=VALUE", help="where to run"
    )
    parser.add_argument(
        "--label", action="append", default=[], metavar="LABEL=VALUE", help="of the JobSet"
    )
    parser.add_argument("--restarts", type=int, default=100, help="of the whole JobSet, in all")
    parser.add_argument("--grace", type=int, default=300, help="seconds to save in, after SIGTERM")


def check_options(options: argparse.Namespace) -> None:
    """Refuses what is missing, or would never be scheduled."""
    if not options.image:
        raise ConfigError("--image is missing: a container image with this repository")
    if bool(options.tpu) == bool(options.gpus):
        raise ConfigError("take one of --tpu=tpu-v6e-slice (with --topology=4x4) and --gpus=8")
    for name in ("chips_per_node", "slices", "nodes", "grace"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}={getattr(options, name)}: 1 or more")
    if options.restarts < 0:
        raise ConfigError(f"--restarts={options.restarts}: must be 0 or more")
    if options.tpu:
        _hosts(options)
    for name in ("node_selector", "label"):
        _pairs(getattr(options, name), name)


def manifest(name: str, job: Job, options: argparse.Namespace) -> dict[str, Any]:
    """The JobSet of one job.

    The whole set starts again when a pod ends with any status but those that starting again does
    not help. Those fail their Job with the reason PodFailurePolicy, by which the set knows them.
    """
    tpu = bool(options.tpu)
    group = "slice" if tpu else "nodes"
    hosts = _hosts(options) if tpu else options.nodes
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": options.grace,
        "nodeSelector": _node_selector(options),
        "containers": [_container(name, group, job, options)],
    }
    if options.service_account:
        pod["serviceAccountName"] = options.service_account
    if not tpu:
        # NCCL shares memory between GPUs there; a container's own is 64 MiB.
        pod["volumes"] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    if not pod["nodeSelector"]:
        del pod["nodeSelector"]
    exit_codes = {
        "containerName": CONTAINER,
        "operator": "In",
        "values": sorted((MISTAKE, FAILED)),
    }
    job_spec = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": exit_codes}]},
        "template": {"spec": pod},
    }
    metadata: dict[str, Any] = {"name": name}
    if options.namespace:
        metadata["namespace"] = options.namespace
    if options.label:
        metadata["labels"] = _pairs(options.label, "label")
    if tpu:
        # A slice is a node pool: its pods have it to themselves.
        topology = "alpha.jobset.sigs.k8s.io/exclusive-topology"
        metadata["annotations"] = {topology: "cloud.google.com/gke-nodepool"}
    final = {
        "name": "startingAgainDoesNotHelp",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    replicas = options.slices if tpu else 1
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": name},
            "failurePolicy": {"maxRestarts": options.restarts, "rules": [final]},
            "replicatedJobs": [
                {"name": group, "replicas": replicas, "template": {"spec": job_spec}}
            ],
        },
    }


def describe(jobs: Sequence[Job], options: argparse.Namespace) -> str:
    """The manifests, one document each."""
    # A pod is called NAME-GROUP-JOB-POD and five letters, 63 in all.
    names = resource_names(list(jobs), options.name, 40)
    made = [
        manifest(name, portable(job, options.python or "python"), options)
        for name, job in zip(names, jobs, strict=True)
    ]
    return yaml.safe_dump_all(made, sort_keys=False, width=1000).rstrip()


def run(jobs: Sequence[Job], options: argparse.Namespace) -> int:
    """Hands the manifests to the cluster."""
    try:
        done = subprocess.run(
            ["kubectl", "apply", "-f", "-"], input=describe(jobs, options), text=True, check=False
        )
    except FileNotFoundError:
        raise ConfigError("kubectl is not on this host; install it, or use --dry-run") from None
    if done.returncode:
        raise ConfigError(f"kubectl apply ended with status {done.returncode}")
    return 0


def _container(name: str, group: str, job: Job, options: argparse.Namespace) -> dict[str, Any]:
    env = [{"name": "PYTHONUNBUFFERED", "value": "1"}]
    env += [{"name": variable, "value": _plain(value)} for variable, value in job.env]
    place, mounts = {}, []
    resources = {"google.com/tpu": options.chips_per_node}
    if options.gpus:
        resources = {"nvidia.com/gpu": options.gpus}
        env.append({"name": "PROCESS", "valueFrom": {"fieldRef": {"fieldPath": INDEX}}})
        mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
        place = {"coordinator": "none"}
        if options.nodes > 1:
            first = f"{name}-{group}-0-0.{name}:{PORT}"
            place = {"coordinator": first, "processes": options.nodes, "process": "PROCESS"}
    words = map(_plain, job.argv(**place))
    container = {
        "name": CONTAINER,
        "image": options.image,
        "command": [word.replace("--process=PROCESS", "--process=$(PROCESS)") for word in words],
        "env": env,
        "resources": {"limits": resources},
    }
    if options.directory:
        container["workingDir"] = options.directory
    if mounts:
        container["volumeMounts"] = mounts
    return container


def _plain(text: str) -> str:
    # Kubernetes puts the value of a variable where it reads $(NAME).
    return text.replace("$(", "$$(")


def _node_selector(options: argparse.Namespace) -> dict[str, str]:
    selector = _pairs(options.node_selector, "node_selector")
    if options.tpu:
        selector["cloud.google.com/gke-tpu-accelerator"] = options.tpu
        selector["cloud.google.com/gke-tpu-topology"] = options.topology
    return selector


def _hosts(options: argparse.Namespace) -> int:
    """Nodes of one slice."""
    if not re.fullmatch(r"\d+(x\d+){1,2}", options.topology or ""):
        raise ConfigError(f"--topology={options.topology}: must be like 4x4 or 2x2x4")
    chips = math.prod(map(int, options.topology.split("x")))
    if not chips or chips % options.chips_per_node:
        raise ConfigError(
            f"--topology={options.topology}: its {chips} chips must be a multiple of "
            f"--chips-per-node={options.chips_per_node}"
        )
    return chips // options.chips_per_node


def _pairs(given: Sequence[str], name: str) -> dict[str, str]:
    pairs = dict(text.partition("=")[::2] for text in given)
    if "" in pairs or "" in pairs.values():
        raise ConfigError(f"--{name.replace('_', '-')}: {given}: must be LABEL=VALUE each")
    return pairs
