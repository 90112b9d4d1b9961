"""One process of several: trains a small stack, draws with it and measures it, twice."""

import os

from configs import unclip_shapes
from tests.pipelines.tiny_stack import shrink
from tests.training import many_processes
from training.config import freeze

PROMPTS = ("a small red circle on a white background", "a large blue star")


def tiny(**mesh):
    """CLIP, an autoregressive prior and a decoder with the least networks."""
    config = unclip_shapes.get_config("smoke_priors")
    config.order = ("clip", "prior_ar", "decoder")
    for name in set(config.stages) - set(config.order):
        del config.stages[name]
    for stage in config.stages.values():
        shrink(stage, steps=2)
        stage.mesh.update(mesh)
    config.stages.decoder.task = "decoder(size=8)"
    # After two steps of training pictures would be grey; in this way they are of noise.
    config.stages.decoder.diffusion.parameterization = "v"
    config.stages.decoder.sample.steps = 4
    config.stages.decoder.model.update(hidden_size=8, num_heads=1)
    config.stages.prior_ar.model.update(components=4, buckets=8)
    config.splits = ("compositional",)
    config.generate.update(prior="prior_ar", upsamplers=(), prompts=PROMPTS, count=3, batch_size=4)
    config.evaluate.metrics = (
        "decoded_quality(split='compositional', count=4)",
        "prior_quality(split='compositional', count=4)",
    )
    return freeze(config)


def main():
    """Trains, draws, measures; then all is there."""
    # The tests' own quick compilation, read when the first program is compiled.
    os.environ["XLA_FLAGS"] += (
        " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )
    import jax

    from evaluation import stack as measured
    from pipelines import generate
    from pipelines import stack as stacks
    from training import processes

    jax.config.update("jax_disable_most_optimizations", True)
    flags = many_processes.given()
    processes.join(flags["coordinator"], int(flags["processes"]), int(flags["process"]))
    config, root = tiny(fsdp=2), flags["workdir"]
    for _ in range(2):
        stacks.train(config, root)
        generate.generate(config, root)
        measured.evaluate(config, root)


if __name__ == "__main__":
    main()
