"""One process of two: puts its rows of a batch on meshes over both; run by test_mesh_processes.

python tests/training/mesh_process.py PORT PROCESS
"""

import sys

import jax
import numpy as np

from training import mesh as meshes

port, process = map(int, sys.argv[1:])
jax.distributed.initialize(f"127.0.0.1:{port}", 2, process, heartbeat_timeout_seconds=20)
BATCH = np.arange(8)
for sizes in ((4, 1, 1), (1, 4, 1), (2, 2, 1), (1, 2, 2), (2, 1, 2), (1, 1, 4)):
    mesh = meshes.make_mesh(*sizes)
    index, count = meshes.batch_share(mesh)
    mine = BATCH.reshape(count, -1)[index]
    sharding = meshes.batch_sharding(mesh)
    batch = jax.make_array_from_process_local_data(sharding, mine, BATCH.shape)
    whole = jax.jit(lambda x: x, out_shardings=meshes.replicated(mesh))(batch)
    print(sizes, (index, count), np.asarray(whole.addressable_data(0)).tolist(), flush=True)
