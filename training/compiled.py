"""Compiles a training step for devices that are not there: the child process of `launch.plan`.

A request as JSON on stdin, the numbers as the last line of stdout. Its environment has set the
number of fake devices before JAX is imported.
"""

import json
import math
import sys
import time
from typing import Any

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict

from training import collectives, flops, run
from training.components import ConfigError
from training.config import freeze, load


def main() -> int:
    """1 where the request cannot be met, which the last line of stdout then says."""
    request = json.load(sys.stdin)
    try:
        print(json.dumps(numbers(request)))
    except ConfigError as error:
        print(str(error).replace("\n", "; "))
        return 1
    return 0


def numbers(request: dict[str, Any]) -> dict[str, Any]:
    """What the compiler says, JSON values; bytes are of one device."""
    config = freeze(load(request["config"]))
    teachers = {name: freeze(load(each)) for name, each in request["teachers"].items()}
    if request["topology"]:
        devices = topologies.get_topology_desc(request["topology"], platform="tpu").devices
    else:
        devices = jax.devices()
    built = run.build(config, devices, teachers)
    start = time.perf_counter()
    compiled = built.train_step.lower(built.abstract_state, built.batch_spec).compile()
    seconds = time.perf_counter() - start
    state, analysis = built.abstract_state, compiled.memory_analysis()
    memory = {
        "parameters": local_bytes(state.params),
        "optimizer": local_bytes(state.opt_state),
        "averages": local_bytes(state.ema),
        "frozen": local_bytes(state.frozen),
        "batch": local_bytes(built.batch_spec),
        # Gradients, activations, and parameters while they are gathered.
        "temporaries": analysis.temp_size_in_bytes,
        "program": analysis.generated_code_size_in_bytes,
    }
    # What is not donated is given back beside what was taken; the rest is scalars, and padding.
    arguments = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    arguments -= analysis.alias_size_in_bytes
    memory["other"] = max(0, arguments - sum(list(memory.values())[:5]))
    memory["total"] = sum(memory.values())
    return {
        "devices": built.mesh.size,
        "mesh": dict(built.mesh.shape),
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)),
        "memory": memory,
        "flops": model_flops(config, built, devices, teachers),
        "collectives": collectives.summary(collectives.collectives(compiled.as_text())),
        "compile_seconds": seconds,
    }


def local_bytes(tree: Any) -> int:
    """Bytes of a tree of `jax.ShapeDtypeStruct` on one device, by their shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def model_flops(config: Any, built: run.Run, devices: Any, teachers: dict[str, Any]) -> int:
    """FLOPs of a step on all devices, without what `model.remat` computes twice."""
    if config.model.get("remat", False):
        once = ConfigDict(config.to_dict())
        once.model.remat = False
        built = run.build(freeze(once), devices, teachers)
    return flops.count_flops(built.train_step, built.abstract_state, built.batch_spec)


if __name__ == "__main__":
    sys.exit(main())
