"""Times the sampler of any config, `config.sample`, with random parameters.

    python -m benchmarks.sampler --config=configs/cifar10_ddpm.py --config.sample.steps=10 \\
        --config.sample.batch_size=16 --draws=5 --json=out.json

A draw is one batch of `config.sample.batch_size` images, from noise to the last step, waited for.
Compiling is timed apart.

    --against=diffusers [--peer-python=/path/to/python] [--peer-modes=eager,compile]

draws with the same network under diffusers' scheduler beside it, in turn, and gives the ratios.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

import models
from benchmarks import command, diffusers_job, peer
from training import allocator, command_line, flops, tasks
from training.components import ConfigError
from training.mesh import batch_sharding, batch_ways, make_mesh, replicated
from training.sampler import build_sampler, sample_labels
from training.workdir import provenance

_WARM_UP = 1


def main(arguments: Sequence[str]) -> None:
    """Reads the flags, measures, prints a table and writes JSON."""
    overrides, rest = command_line.split(arguments)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True, help="file.py or file.py:variant")
    parser.add_argument("--draws", type=int, default=5, help="batches to time")
    parser.add_argument("--json", help="file for the result")
    peer.add_flags(parser)
    flags = parser.parse_args(rest)
    if flags.draws < 1:
        parser.error(f"--draws={flags.draws}: must be at least 1")
    try:
        config = command.checked_config(flags.config, overrides)
        allocator.keep_freed_memory()
        jobs = {mode: diffusers_job.sample_job(config, mode) for mode in peer.modes(flags)}
        result = measure(config, flags.draws, jobs, flags.peer_python)
    except (ConfigError, peer.PeerError) as error:
        parser.error(str(error))
    result = {"config": flags.config, "overrides": overrides} | result
    print(table(result))
    command.write_json(flags.json, result)


def measure(
    config: Any, draws: int, jobs: Mapping[str, Mapping] | None = None, python: str = ""
) -> dict[str, Any]:
    """Times `draws` batches of samples; JSON values, seconds and bytes.

    jobs, python: of the peers to time in turn with it, by name; see `peer.against`.
    """
    task = tasks.make_task(config)
    sampler = build_sampler(config, task)
    mesh = make_mesh(**config.mesh)
    count = config.sample.batch_size
    if count % batch_ways(mesh):
        raise ConfigError(
            f"config.sample.batch_size: {count} images cannot be shared evenly by "
            f"{batch_ways(mesh)} devices (data x fsdp)"
        )
    params = jax.jit(task.init, out_shardings=replicated(mesh))(jax.random.key(0))
    indices = np.arange(count, dtype=np.int32)
    labels = sample_labels(config.sample.labels, task.num_classes, indices)
    rows = jax.device_put((indices, labels), batch_sharding(mesh))
    seed = jax.device_put(jax.random.key(config.sample.seed), replicated(mesh))
    arguments = (params, sampler.inputs(params), seed, *rows)

    start = time.perf_counter()
    program = jax.jit(sampler.draw, out_shardings=batch_sharding(mesh))
    lowered = program.lower(*arguments)
    traced = time.perf_counter()
    draw = lowered.compile()
    compiled = time.perf_counter()

    def timed() -> float:
        before = time.perf_counter()
        jax.block_until_ready(draw(*arguments))
        return time.perf_counter() - before

    parameters = models.count_parameters(params)
    with peer.against(jobs or {}, python, parameters) as peers:
        seconds = peer.interleave({"ours": timed} | peers, draws, _WARM_UP)
    times = peer.percentiles(seconds["ours"], "draw_seconds")
    median = times["draw_seconds_median"]
    work = flops.count_flops(sampler.draw, *arguments)
    return {
        "parameters": parameters,
        "batch_size": count,
        "dtype": config.model.dtype,
        "mesh": dict(mesh.shape),
        "solver": config.sample.solver,
        "steps": config.sample.steps,
        "network_calls_per_image": sampler.calls_per_image,
        "trace_seconds": traced - start,
        "compile_seconds": compiled - traced,
        "draws": draws,
        **times,
        "images_per_second": count / median,
        "network_calls_per_second": sampler.calls_per_image / median,
        "flops_per_draw": work,
        "flops_per_second": work / median,
        "mfu": flops.mfu(work, median, mesh.size, config.model.dtype, config.log.peak_flops),
        **flops.peak_memory(),
        "against": peer.compare(seconds["ours"], peers, seconds),
        "provenance": provenance(),
    }


def table(result: dict[str, Any]) -> str:
    """The result as lines of name and value."""
    devices = result["provenance"]["devices"]
    memory = "device_peak_bytes" if "device_peak_bytes" in result else "host_peak_rss_bytes"
    rows = {
        "config": " ".join([result["config"], *result["overrides"]]),
        "devices": f"{devices['count']} x {devices['kind']}, {result['dtype']}",
        "parameters": f"{result['parameters']:,}",
        "sampler": f"{result['solver']}, {result['steps']} steps, "
        f"{result['network_calls_per_image']} network calls an image",
        "batch size": f"{result['batch_size']}",
        "trace, compile": f"{result['trace_seconds']:.1f} s, {result['compile_seconds']:.1f} s",
        "draw, median": f"{result['draw_seconds_median']:.3f} s",
        "draw, p10 to p90": f"{result['draw_seconds_p10']:.3f} to "
        f"{result['draw_seconds_p90']:.3f} s of {result['draws']}",
        "images/s": f"{result['images_per_second']:.3f}",
        "network calls/s": f"{result['network_calls_per_second']:.2f}, of the whole batch",
        "FLOP/s": f"{result['flops_per_second']:.4g}",
        "MFU": command.utilization(result["mfu"]),
        memory.removesuffix("_bytes").replace("_", " "): f"{result[memory] / 2**20:,.0f} MiB",
    }
    rows |= peer.rows(result["against"])
    return "\n".join(f"{name:<18}{value}" for name, value in rows.items())


if __name__ == "__main__":
    main(sys.argv[1:])
