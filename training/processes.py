"""The processes of a run: one on each host, started by whoever starts them, joined by JAX."""

import os
import socket
import sys
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from training.components import ConfigError

AUTO, NONE = "auto", "none"


def join(
    coordinator: str = AUTO,
    processes: int = 0,
    process: int = -1,
    heartbeat: int = 100,
    preemption: bool = True,
) -> None:
    """Joins the other processes of the run, if there are any; before JAX computes anything.

    Args:
        coordinator: 'auto': Cloud TPU, SLURM, Open MPI and the like are detected by JAX, and
            without one of them the run has this process alone; 'none': it has this process alone;
            or 'host:port' of process 0.
        processes: how many there are; with 'host:port' only.
        process: which of them this is, from 0 on; with 'host:port' only.
        heartbeat: seconds after which a process that is silent counts as dead, and the others end.
        preemption: whether JAX is to catch SIGTERM, for `training.preemption`; where nobody asks
            for it SIGTERM ends a process, as ever.

    Raises:
        ConfigError: the arguments do not fit each other.
    """
    explicit = coordinator not in (AUTO, NONE)
    _check(coordinator, processes, process, heartbeat, explicit)
    if coordinator == NONE:
        return
    jax.config.update("jax_enable_preemption_service", preemption)
    try:
        if explicit:
            # Without detection each process has all devices of its host, also inside a SLURM job.
            jax.distributed.initialize(
                coordinator,
                processes,
                process,
                cluster_detection_method="deactivate",
                heartbeat_timeout_seconds=heartbeat,
            )
        else:
            jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat)
    except ValueError as error:
        # What JAX says where it detects no cluster.
        if explicit or "coordinator_address should be defined" not in str(error):
            raise


def introduce() -> None:
    """Prints a line about this process, where it is one of several."""
    if jax.process_count() == 1:
        return
    own = jax.local_devices()
    devices = f"{len(own)} of {jax.device_count()} x {own[0].device_kind}"
    print(f"{title()}: {devices}, pid {os.getpid()}", file=sys.stderr, flush=True)


def _check(coordinator: str, processes: int, process: int, heartbeat: int, explicit: bool) -> None:
    if heartbeat < 1:
        raise ConfigError(f"--heartbeat={heartbeat}: seconds, 1 or more")
    if not explicit:
        if processes or process != -1:
            raise ConfigError(
                f"--processes and --process are for --coordinator=host:port, not for "
                f"--coordinator={coordinator}"
            )
        return
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(
            f"--coordinator={coordinator}: must be auto, none, or host:port of process 0"
        )
    if processes < 1:
        raise ConfigError(f"--processes={processes}: with --coordinator=host:port, 1 or more")
    if not 0 <= process < processes:
        raise ConfigError(
            f"--process={process}: which of the {processes} processes this is, from 0 to "
            f"{processes - 1}"
        )


def first() -> bool:
    """Whether this is process 0, which writes and tells what there is one of."""
    return jax.process_index() == 0


def title() -> str:
    """What this process is called in messages."""
    return f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}"


def on_first(act: Callable[[], bool | None]) -> bool:
    """What process 0 finds, on all processes, after it did it.

    Raises:
        Exception: what process 0 raised; on the others a RuntimeError that says that it did.
    """
    found, error = 0, None
    if jax.process_index() == 0:
        try:
            found = int(bool(act()))
        except Exception as raised:
            found, error = -1, raised
    found = int(multihost_utils.broadcast_one_to_all(np.array(found)))
    if error is not None:
        raise error
    if found < 0:
        raise RuntimeError("process 0 failed; its message says why")
    return bool(found)


def whole(array: jax.Array) -> np.ndarray:
    """An array in this host's memory, of which other processes may hold parts.

    Those have to call it together.
    """
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
