"""One process of several: puts its rows of a batch on meshes over all of them."""

import jax
import numpy as np

from tests.training import many_processes
from training import mesh as meshes
from training import processes

flags = many_processes.given()
processes.join(flags["coordinator"], int(flags["processes"]), int(flags["process"]))
BATCH = np.arange(8)
for sizes in ((4, 1, 1), (1, 4, 1), (2, 2, 1), (1, 2, 2), (2, 1, 2), (1, 1, 4)):
    mesh = meshes.make_mesh(*sizes)
    index, count = meshes.batch_share(mesh)
    mine = BATCH.reshape(count, -1)[index]
    sharding = meshes.batch_sharding(mesh)
    batch = jax.make_array_from_process_local_data(sharding, mine, BATCH.shape)
    whole = jax.jit(lambda x: x, out_shardings=meshes.replicated(mesh))(batch)
    print(sizes, (index, count), np.asarray(whole.addressable_data(0)).tolist(), flush=True)
