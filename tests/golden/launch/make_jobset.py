"""Makes jobset.json: which fields a JobSet has, from its published CustomResourceDefinition.

    python make_jobset.py jobset.x-k8s.io_jobsets.yaml

The file is config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml of
https://github.com/kubernetes-sigs/jobset. Kept are names, types, enumerations and what is required,
of the objects that a manifest of a training run goes through; of other objects only that they are.
"""

import json
import sys
from pathlib import Path

import yaml

SPEC = ("spec",)
JOB = (*SPEC, "replicatedJobs", "[]", "template", "spec")
POD = (*JOB, "template", "spec")
CONTAINER = (*POD, "containers", "[]")
OPENED = [
    (),
    SPEC,
    (*SPEC, "network"),
    (*SPEC, "failurePolicy"),
    (*SPEC, "failurePolicy", "rules", "[]"),
    (*SPEC, "replicatedJobs", "[]"),
    (*SPEC, "replicatedJobs", "[]", "template"),
    JOB,
    (*JOB, "podFailurePolicy"),
    (*JOB, "podFailurePolicy", "rules", "[]"),
    (*JOB, "podFailurePolicy", "rules", "[]", "onExitCodes"),
    (*JOB, "template"),
    POD,
    (*POD, "volumes", "[]"),
    (*POD, "volumes", "[]", "emptyDir"),
    CONTAINER,
    (*CONTAINER, "env", "[]"),
    (*CONTAINER, "env", "[]", "valueFrom"),
    (*CONTAINER, "env", "[]", "valueFrom", "fieldRef"),
    (*CONTAINER, "resources"),
    (*CONTAINER, "volumeMounts", "[]"),
]


def pruned(schema: dict, path: tuple[str, ...]) -> dict:
    kept = {key: schema[key] for key in ("type", "enum") if key in schema}
    if "x-kubernetes-int-or-string" in schema:
        kept["type"] = ["integer", "string"]
    if "items" in schema:
        kept["items"] = pruned(schema["items"], (*path, "[]"))
    if "additionalProperties" in schema:
        kept["additionalProperties"] = pruned(schema["additionalProperties"], (*path, "*"))
    if "properties" in schema and path in OPENED:
        kept["required"] = schema.get("required", [])
        properties = schema["properties"].items()
        kept["properties"] = {name: pruned(inner, (*path, name)) for name, inner in properties}
    return kept


if __name__ == "__main__":
    crd = yaml.safe_load(Path(sys.argv[1]).read_text())
    (version,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1alpha2"]
    schema = pruned(version["schema"]["openAPIV3Schema"], ())
    Path(__file__).with_name("jobset.json").write_text(json.dumps(schema, indent=1) + "\n")
