"""Times the real training step of any config on a synthetic batch that lies on the devices.

    python -m benchmarks.train_step --config=configs/cifar10_ddpm.py --config.train.batch_size=16 \\
        --steps=20 --json=out.json

Compiling is timed apart. Each step is waited for, so the percentiles are those of single steps.

    --against=diffusers [--peer-python=/path/to/python] [--peer-modes=eager,compile]

trains the same network in PyTorch beside it, step by step in turn, and gives the ratios.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import models
from benchmarks import command, diffusers_job, peer
from training import allocator, command_line, flops, run
from training.components import ConfigError
from training.workdir import provenance

_WARM_UP = 2


def main(arguments: Sequence[str]) -> None:
    """Reads the flags, measures, prints a table and writes JSON."""
    overrides, rest = command_line.split(arguments)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True, help="file.py or file.py:variant")
    parser.add_argument("--steps", type=int, default=20, help="steps to time")
    parser.add_argument("--json", help="file for the result")
    peer.add_flags(parser)
    flags = parser.parse_args(rest)
    if flags.steps < 1:
        parser.error(f"--steps={flags.steps}: must be at least 1")
    try:
        config = command.checked_config(flags.config, overrides)
        allocator.keep_freed_memory()
        jobs = {mode: diffusers_job.train_job(config, mode) for mode in peer.modes(flags)}
        result = measure(config, flags.steps, jobs, flags.peer_python)
    except (ConfigError, peer.PeerError) as error:
        parser.error(str(error))
    result = {"config": flags.config, "overrides": overrides} | result
    print(table(result))
    command.write_json(flags.json, result)


def measure(
    config: Any, steps: int, jobs: Mapping[str, Mapping] | None = None, python: str = ""
) -> dict[str, Any]:
    """Times `steps` training steps of a config; JSON values, seconds and bytes.

    jobs, python: of the peers to time in turn with it, by name; see `peer.against`.
    """
    start = time.perf_counter()
    built = run.build(config)
    lowered = built.train_step.lower(built.abstract_state, built.batch_spec)
    traced = time.perf_counter()
    train_step = lowered.compile()
    compiled = time.perf_counter()

    state, batch = built.init_state(), synthetic_batch(built.batch_spec)
    parameters = models.count_parameters(built.abstract_state.params)

    def step() -> float:
        nonlocal state
        before = time.perf_counter()
        state = jax.block_until_ready(train_step(state, batch))
        return time.perf_counter() - before

    with peer.against(jobs or {}, python, parameters) as peers:
        seconds = peer.interleave({"ours": step} | peers, steps, _WARM_UP)
    times = peer.percentiles(seconds["ours"], "step_seconds")
    median = times["step_seconds_median"]
    count, devices = model_flops(config, built), built.mesh.size
    return {
        "parameters": parameters,
        "batch_size": config.train.batch_size,
        "accumulate": config.train.accumulate,
        "dtype": config.model.dtype,
        "mesh": dict(built.mesh.shape),
        "trace_seconds": traced - start,
        "compile_seconds": compiled - traced,
        "steps": steps,
        **times,
        "images_per_second": config.train.batch_size / median,
        "flops_per_step": count,
        "flops_per_second": count / median,
        "mfu": flops.mfu(count, median, devices, config.model.dtype, config.log.peak_flops),
        **flops.peak_memory(),
        "against": peer.compare(seconds["ours"], peers, seconds),
        "provenance": provenance(),
    }


def model_flops(config: Any, built: run.Run) -> int:
    """FLOPs of one step, of all devices, without what `model.remat` computes twice."""
    if config.model.get("remat", False):
        once = ConfigDict(config.to_dict())
        once.model.remat = False
        built = run.build(once)
    return flops.count_flops(built.train_step, built.abstract_state, built.batch_spec)


def synthetic_batch(spec: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Random bytes for images, zeros for all else, placed as the spec says."""
    rng = np.random.default_rng(0)

    def make(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = np.zeros(leaf.shape, leaf.dtype)
        if leaf.dtype == np.uint8:
            values = rng.integers(0, 256, leaf.shape, np.uint8)
        return jax.device_put(values, leaf.sharding)

    return jax.tree.map(make, spec)


def table(result: dict[str, Any]) -> str:
    """The result as lines of name and value."""
    devices = result["provenance"]["devices"]
    memory = "device_peak_bytes" if "device_peak_bytes" in result else "host_peak_rss_bytes"
    rows = {
        "config": " ".join([result["config"], *result["overrides"]]),
        "devices": f"{devices['count']} x {devices['kind']}, {result['dtype']}",
        "parameters": f"{result['parameters']:,}",
        "batch size": f"{result['batch_size']} ({result['accumulate']} microbatches)",
        "trace, compile": f"{result['trace_seconds']:.1f} s, {result['compile_seconds']:.1f} s",
        "step, median": f"{1e3 * result['step_seconds_median']:.2f} ms",
        "step, p10 to p90": f"{1e3 * result['step_seconds_p10']:.2f} to "
        f"{1e3 * result['step_seconds_p90']:.2f} ms of {result['steps']}",
        "images/s": f"{result['images_per_second']:.1f}",
        "FLOPs a step": f"{result['flops_per_step']:.4g}",
        "FLOP/s": f"{result['flops_per_second']:.4g}",
        "MFU": command.utilization(result["mfu"]),
        memory.removesuffix("_bytes").replace("_", " "): f"{result[memory] / 2**20:,.0f} MiB",
    }
    rows |= peer.rows(result["against"])
    return "\n".join(f"{name:<18}{value}" for name, value in rows.items())


if __name__ == "__main__":
    main(sys.argv[1:])
