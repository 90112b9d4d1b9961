"""Compiles a small training step over fsdp=64 and tells what it sends; run by test_collectives.

    python tests/training/fsdp_program.py cpu|tpu remat|keep

In a process of its own, whose environment sets the number of fake devices.
"""

import dataclasses
import json
import sys

import jax
from jax.experimental import topologies

from configs import base
from training import collectives, partition, run
from training.config import freeze

platform, memory = sys.argv[1:]
config = base.get_config()
config.data.update(image_size=8, channels=3)
config.model.update(
    channels=64, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), dropout=0.0
)
config.model.remat = memory == "remat"
config.train.batch_size = 64
config.mesh.update(data=1, fsdp=64)
devices = jax.devices()
if platform == "tpu":
    devices = topologies.get_topology_desc("v5p:4x4x4", platform="tpu").devices
built = run.build(freeze(config), devices)
text = built.train_step.lower(built.abstract_state, built.batch_spec).compile().as_text()
leaves = jax.tree_util.tree_leaves_with_path(built.abstract_state.params)
print(
    json.dumps(
        {
            "parameters": [
                {
                    "path": partition.name(path),
                    "shape": leaf.shape,
                    "sharded": "fsdp" in leaf.sharding.spec,
                }
                for path, leaf in leaves
            ],
            "collectives": [
                dataclasses.asdict(each) | {"bytes": each.bytes}
                for each in collectives.collectives(text)
            ],
        }
    )
)
