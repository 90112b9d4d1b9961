"""The rows that each of two real processes loads come to their place in the batch."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_rows_of_both_processes_are_in_order_on_every_mesh():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(ROOT),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "tests/training/mesh_process.py", str(port), str(process)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for process in range(2)
    ]
    try:
        told = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    for process, (_, errors) in zip(processes, told, strict=True):
        assert process.returncode == 0, errors[-2000:]
    rows = list(range(8))
    halves = ((4, 1, 1), (1, 4, 1), (2, 2, 1), (1, 2, 2), (2, 1, 2))
    for process, (lines, _) in enumerate(told):
        expected = [f"{sizes} {(process, 2)} {rows}" for sizes in halves]
        # Both hold all rows, and load all of them.
        # Gloo writes of its own on the same stream.
        found = [line for line in lines.splitlines() if line.startswith("(")]
        assert found == [*expected, f"{(1, 1, 4)} {(0, 1)} {rows}"]
