"""Runs main.py, a restore or another program in several processes on this host."""

import os
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run(command, processes, devices, log, timeout=500):
    """Starts `command` once for each process; their exit codes."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    port, started = free_port(), []
    try:
        for index in range(processes):
            place = ["--coordinator=none"]
            if processes > 1:
                place = [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}"]
                place += [f"--process={index}", "--heartbeat=30"]
            with open(f"{log}-{index}.log", "a") as out:
                started.append(
                    subprocess.Popen(
                        [sys.executable, *command, *place],
                        env=environment,
                        stdout=out,
                        stderr=out,
                        start_new_session=True,
                    )
                )
        return [process.wait(timeout) for process in started]
    finally:
        for process in started:
            process.kill()


def given():
    """The flags of this process, those that `run` adds among them, by name."""
    return dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])


def restore(workdir, out, coordinator, processes, process):
    """Restores the newest checkpoint and stores the pieces that this process holds."""
    import jax
    import numpy as np

    from training import checkpoint_layout, checkpoints, fingerprint, partition
    from training import processes as joined
    from training import run as runs
    from training.config import freeze, load

    joined.join(coordinator, processes, process)
    config = load(Path(workdir) / "config.json")
    config.mesh.update(data=1, fsdp=-1)
    store = checkpoints.Checkpoints(Path(workdir) / "checkpoints")
    state, _, step = store.restore_newest(runs.build(freeze(config)).abstract_state)
    pieces = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(checkpoint_layout.as_items(state)):
        for shard in fingerprint.raw_bits(leaf).addressable_shards:
            place = [(part.start, part.stop) for part in shard.index]
            pieces[f"{partition.name(path)} {place}"] = np.asarray(shard.data)
    np.savez(f"{out}-{process}.npz", **pieces)
    assert step == config.train.steps


if __name__ == "__main__":
    flags = given()
    coordinator = flags["coordinator"]
    alone = coordinator == "none"
    restore(
        flags["workdir"],
        flags["out"],
        coordinator,
        0 if alone else int(flags["processes"]),
        -1 if alone else int(flags["process"]),
    )
