"""Every field of a stack: the stages of unCLIP as one experiment. `configs.base` has a stage's.

    python main.py --config=configs/unclip_shapes.py --workdir=runs/unclip
    python main.py --mode=generate --workdir=runs/unclip --prompt="a small red circle"
    python main.py --mode=evaluate --workdir=runs/unclip

A stage is a run like any other: its config is config.stages.<name>, its work directory
<workdir>/<name>, and every mode works on that, too. In the strings of a stage '{root}' stands for
the work directory of the stack, also in the stage's own config.json: a stack may be moved whole.
"""

from ml_collections import ConfigDict


def get_config(**stages: ConfigDict) -> ConfigDict:
    """A stack of stages, each a config of `configs.base`, in the order in which they are trained.

    A stage that reads CLIP's embeddings leaves out where they come from: `embeddings` says it.
    """
    config = ConfigDict()
    # Names of all stages, in the order in which they are trained.
    config.order = tuple(stages)
    config.stages = ConfigDict(stages)
    # What --mode=train trains: a stage or several ('prior,decoder'); '': all.
    config.only = ""
    # How stages come by CLIP's embeddings. 'records': written once, when CLIP is trained. 'step':
    # computed by the frozen CLIP inside each training step, so that nothing is stored.
    config.embeddings = "records"
    # Images and captions that stages with embeddings learn from and metrics are of, a line of
    # `input_pipeline.SOURCES`; '': those that CLIP learns from.
    config.pairs = ""
    # Splits of these that are written, with 'records'.
    config.splits = ("train", "test")

    config.generate = generate = ConfigDict()
    # Captions of the images; --prompt="..." (as often as one likes) and --prompts=file.txt, one a
    # line, set it.
    generate.prompts = ()
    # The stages that make an image, by name. A prior of '': the decoder is given the text embedding
    # in place of an image embedding.
    generate.prior = "prior"
    generate.decoder = "decoder"
    # In the order of their sizes; (): images as the decoder makes them.
    generate.upsamplers = ("upsampler",)
    # Images of each prompt. Image i of a prompt depends on seed, i and the prompt alone.
    generate.count = 1
    generate.seed = 0
    # Images made together.
    generate.batch_size = 64

    config.evaluate = evaluate = ConfigDict()
    # Lines of `evaluation.STACK_METRICS`.
    evaluate.metrics = ()
    return config
