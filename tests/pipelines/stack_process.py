"""One process of several: trains a small stack, draws with it and measures it."""

import sys
import faulthandler; faulthandler.dump_traceback_later(110, exit=True)
from pathlib import Path

from pipelines import generate
from pipelines import stack as stacks
from evaluation import stack as measured
from tests.training import many_processes
from training import processes
from training.config import freeze
from configs import unclip_shapes

CAPTION = "a small red circle on a white background"


def tiny():
    """CLIP, an autoregressive prior and a decoder with the least networks."""
    config = unclip_shapes.get_config("smoke_priors")
    config.order = ("clip", "prior_ar", "decoder")
    for name in set(config.stages) - set(config.order):
        del config.stages[name]
    for stage in config.stages.values():
        stage.data.source = "shapes(size=32, split='compositional', objects=1)"
        stage.data.image_size = 32
        stage.train.update(steps=2, batch_size=8)
        stage.optimizer.name = "adam()"
        stage.checkpoint.update(every=2, keep=2)
        stage.log.update(every=2, preview_every=2, preview_count=4, tensorboard=False)
        stage.sample.steps = 2
        stage.mesh.update(data=-1, fsdp=2)
    config.stages.decoder.task = "decoder(size=8, held_out='compositional')"
    config.stages.decoder.model.update(hidden_size=8, num_heads=1)
    config.stages.prior_ar.model.update(components=4, buckets=8)
    config.splits = ("compositional",)
    config.stages.clip.embed.statistics = 32
    config.generate.update(
        batch_size=4, prior="prior_ar", upsamplers=(), prompts=(CAPTION, "a large blue star"), count=3
    )
    config.evaluate.metrics = (
        "decoded_quality(split='compositional', count=4)",
        "prior_quality(split='compositional', count=4)",
    )
    return freeze(config)


if __name__ == "__main__":
    flags = many_processes.given()
    processes.join(flags["coordinator"], int(flags["processes"]), int(flags["process"]))
    config, root = tiny(), flags["workdir"]
    stacks.train(config, root)
    generate.generate(config, root)
    measured.evaluate(config, root)
    # A second time all is there.
    stacks.train(config, root)
    generate.generate(config, root)
    measured.evaluate(config, root)
