"""A stack of the least networks, on data that the tests share."""

from configs import unclip_shapes

CAPTION = "a small red circle on a white background"
SOURCE = "shapes(size=32, split='compositional', objects=1)"


def shrink(stage, steps):
    """A few short steps of a stage, and of its sampling."""
    # A split of a thousand scenes, all of which are embedded.
    stage.data.source = SOURCE
    stage.train.update(steps=steps, batch_size=8)
    stage.optimizer.name = "adam()"  # compiles sooner than Muon
    stage.log.update(every=2, preview_every=0, tensorboard=False)
    stage.sample.steps = 2


def tiny():
    """The smoke stack with the least networks, on data that the tests share."""
    config = unclip_shapes.get_config("smoke")
    for name in config.order:
        stage = config.stages[name]
        shrink(stage, steps=4)
        stage.checkpoint.update(every=2, keep=2)
        if name == "decoder":
            stage.model.update(hidden_size=8, num_heads=1)
        if name == "upsampler":
            stage.model.update(channels=8, channel_mult=(1,), norm_groups=4, num_res_blocks=1)
    config.splits = ("compositional", "test")
    config.stages.clip.embed.statistics = 32
    config.generate.batch_size = 8
    return config
