"""Every field of a config, its meaning and its default. Experiments start from here.

    python main.py --config=configs/digits.py --workdir=/tmp/digits --config.train.steps=1000
    python main.py --config=configs/digits.py:smoke --workdir=/tmp/digits_smoke

A component (schedule, solver, optimizer, data source, ...) is named by a string that reads like a
call, `'cosine(timesteps=4000)'` or just `'cosine'`. Its name is a line of a registry, its arguments
are that function's own keyword arguments; both are checked, with the nearest right name in the
error, before anything is compiled. The same string is what result files store.
"""

import difflib
import os
from collections.abc import Sequence

from ml_collections import ConfigDict

from configs import networks


def check_variant(file: str, variant: str, allowed: Sequence[str]) -> None:
    """Raises where `--config=file.py:variant` names a variant that the file does not have."""
    if variant in allowed:
        return
    names = ", ".join(f":{name}" if name else "none" for name in allowed)
    nearest = difflib.get_close_matches(variant, allowed, 1)
    hint = f"; did you mean :{nearest[0]}?" if nearest else ""
    raise ValueError(
        f"configs/{os.path.basename(file)} has no variant {variant!r}, only {names}{hint}"
    )


def smoke(config: ConfigDict, **model) -> None:
    """Cuts an image config down to a minute on a CPU: small network, few steps, generated data.

    `model` are the fields of the small network; by default those of a small U-Net. Where the
    config has classes they are the 36 of the generated data.
    """
    config.data.update(source="shapes(size=32, split='train')", image_size=32, workers=0)
    small_unet = {
        "channels": 32,
        "channel_mult": (1, 2, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (8,),
    }
    config.model.update(model or small_unet)
    config.model.dtype = "float32"
    if config.model.num_classes:
        config.model.num_classes = 36
    config.train.update(steps=20, batch_size=16)
    config.optimizer.warmup_steps = 5
    config.checkpoint.every = 10
    config.log.update(every=5, preview_every=20, preview_count=4)
    config.sample.update(steps=5, count=8, batch_size=4)


def get_config(variant: str = "") -> ConfigDict:
    """Defaults of all fields. `variant` is what follows the colon in `--config=file.py:variant`."""
    check_variant(__file__, variant, ("",))
    config = ConfigDict()
    # What the run trains: a line of `training.tasks.TASKS`, as a call. Beside 'diffusion' those of
    # few-step generation: 'progressive(teacher="runs/digits", steps=8)', see docs/few_steps.md.
    config.task = "diffusion"
    # Everything random follows from this one number: initial weights, order of the data, noise.
    config.seed = 0

    config.data = data = ConfigDict()
    # Where examples come from: a line of `input_pipeline.SOURCES`, as a call.
    data.source = "digits"
    # Side in pixels; images are cropped to a square and resized to it.
    data.image_size = 8
    # 1 (grey) or 3 (RGB).
    data.channels = 1
    # What is modelled: 'image', or the name of an array [image_size, image_size, channels] that the
    # source has for each example, such as latents of an autoencoder. Those are multiplied by scale;
    # images are brought to [-1, 1] without it.
    data.field = "image"
    data.scale = 1.0
    # Random changes of each training image, in order, of `input_pipeline.AUGMENTATIONS`: ('flip',).
    data.augmentations = ()
    # The same on the device, with labels that the network is told (model.augment_dim), of
    # `input_pipeline.DEVICE_AUGMENTATIONS`: 'edm(probability=0.12)'; '': none.
    data.device_augmentation = ""
    # How captions become token ids, for tasks that ask for them: a line of
    # `input_pipeline.TOKENIZERS`. 'bpe(vocab_size=512)' is trained on the captions of data.source
    # when the run starts, 'file(path=...)' is a published one; '': none. It is stored in the work
    # directory as tokenizer.json.
    data.tokenizer = ""
    # Token ids of a caption, start and end included; a longer one is cut.
    data.context = 77
    # Worker processes of each host; 0 reads in the training process.
    data.workers = 0
    # Batches prepared ahead on the device.
    data.prefetch = 2
    # A broken image: 'raise' (stop with its name) or 'skip' (take the next, count and log it).
    data.on_bad_image = "raise"

    # The network: its name and fields are those of one function of `configs.networks`.
    config.model = networks.unet()

    config.diffusion = diffusion = ConfigDict()
    # alpha and sigma of t: a line of `diffusion.SCHEDULES`.
    diffusion.schedule = "linear(timesteps=1000)"
    # What the network's output means: a line of `diffusion.PARAMETERIZATIONS`.
    diffusion.parameterization = "eps"
    # 'simple' (the weighted squared error), 'hybrid' (simple + vlb on a learned variance, iDDPM
    # eq. 16), 'vlb' (the variational bound of a discrete chain) or 'vdm' (that of continuous time).
    diffusion.loss = "simple"
    # Weight of the squared error over noise levels: a line of `diffusion.WEIGHTINGS`.
    diffusion.weighting = "constant"
    # Distribution of t in training: a line of `diffusion.TIME_SAMPLERS`.
    diffusion.time_sampler = "uniform"
    # Features of the learned uncertainty u of each noise level, in loss / e^u + u (EDM2: 128); 0:
    # no such weight.
    diffusion.uncertainty_channels = 0
    # Variance of the reverse step: 'fixed', or 'learned_range' (the network has twice the output
    # channels; iDDPM eq. 15).
    diffusion.variance = "fixed"
    # Probability of replacing the label by the null label in training (needs model.null_class).
    diffusion.label_dropout = 0.0

    # Parameters that the run starts from, another run's in place of random ones (docs/training.md).
    # They are read at the first start only: a resumed run takes its own.
    config.init = init = ConfigDict()
    # Work directory of the other run; '': all parameters are drawn.
    init.workdir = ""
    # Step of its checkpoint; -1: the newest.
    init.checkpoint = -1
    # Which of its parameters, as in sample.ema; '': those of its own sample.ema.
    init.ema = ""
    # What ours are called there, 'ours -> theirs': a regular expression for the whole path of a
    # parameter ('down/0/conv/kernel'), and the path there, with \1 for its first group. The first
    # that matches decides; without one a parameter has its own name there.
    init.rules = ()
    # Those that keep the values they are drawn with: regular expressions, as ('label/.*',).
    init.fresh = ()
    # Those that may be larger than theirs, which then stand at the low end of each axis, with zeros
    # beyond: ('conv_in/kernel',) where channels were added after those that the other run knew.
    init.pad = ()

    config.train = train = ConfigDict()
    train.steps = 800_000
    # Examples a step, over all devices and hosts.
    train.batch_size = 128
    # Microbatches a step; gradients are averaged over them, so memory falls by this factor.
    train.accumulate = 1
    # This many steps with NaN or infinite gradients (each is skipped and counted) stop the run.
    train.max_bad_steps = 10
    # Seconds without a step, a checkpoint or a preview after which a process takes itself for hung
    # and ends (exit code 75), so that whoever started it starts it again; 0: never. More than the
    # steps of a log interval take.
    train.stall_seconds = 1800.0

    config.optimizer = optimizer = ConfigDict()
    # A line of `training.optimizer.OPTIMIZERS`; the learning rate is given below. Also 'muon' and
    # 'schedule_free_adamw' (decay 'constant'; evaluate its average, ema 'constant(decay=0.0)').
    optimizer.name = "adam(b1=0.9, b2=0.999, eps=1e-8)"
    optimizer.learning_rate = 2e-4
    # Steps of linear warm-up from 0, then 'constant', 'cosine' or 'linear' (to 0 at train.steps) or
    # 'inverse_sqrt' (falls as 1 / sqrt(step / decay_steps) from step decay_steps on, EDM2).
    optimizer.warmup_steps = 5000
    optimizer.decay = "constant"
    # Of 'inverse_sqrt', counted from the start of the run (EDM2: 70_000); 0 with the others.
    optimizer.decay_steps = 0
    # Largest global norm of the gradient; 0: no clipping.
    optimizer.clip_norm = 1.0
    # Sharpness-aware minimization: the gradient is taken this far up the gradient, at twice the
    # cost (0.05 is usual); 0: off.
    optimizer.sam_rho = 0.0
    # After each step every kernel is scaled to weights of RMS 1 for each output (EDM2 networks).
    optimizer.forced_weight_norm = False

    # Averages of the parameters, each under its own name: a line of `training.ema.EMAS`. Two like
    # 'power(std=0.05)' and 'power(std=0.1)' give any other width after training, see sample.ema.
    config.ema = ConfigDict({"default": "constant(decay=0.9999)"})

    # Devices along each axis of the mesh; -1 takes what the others leave. The batch is split over
    # data and fsdp; parameters, optimizer and averages over fsdp, and over tensor where a rule says
    # so (docs/sharding.md). Slices and hosts lie along data, then fsdp; tensor stays in a slice.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})

    config.checkpoint = checkpoint = ConfigDict()
    # Steps between checkpoints; the last step is always saved.
    checkpoint.every = 5000
    # How many of the newest to keep, and every so many steps one to keep for good (0: none); a
    # 'posthoc' average is made of those.
    checkpoint.keep = 3
    checkpoint.keep_every = 0

    config.log = log = ConfigDict()
    # Steps between lines of metrics; each is the mean over the steps since the line before.
    log.every = 100
    # Steps between preview images (0: none).
    log.preview_every = 10_000
    log.preview_count = 64
    # TensorBoard event files beside metrics.jsonl.
    log.tensorboard = True
    # Peak FLOP/s of one device for MFU; 0: from the table of known accelerators (none for CPUs).
    log.peak_flops = 0.0

    # Steps to trace with the profiler (0: none), after the first log line; the trace goes to
    # <workdir>/profile.
    config.profile = 0

    config.sample = sample = ConfigDict()
    # Rule of a step: a line of `diffusion.SOLVERS`.
    sample.solver = "ddpm(variance='fixed_large')"
    # Which times are visited: a line of `diffusion.GRIDS`; and how many steps.
    sample.grid = "respaced"
    sample.steps = 1000
    # The clean image predicted in each step: a line of `diffusion.CLIPS`; 'none', 'static' (clipped
    # to [-1, 1]) or 'dynamic(percentile=0.995)'.
    sample.clip = "static"
    # After clipping, the noise is 'rederive'd from the clipped image (OpenAI) or left 'raw' (DDIM).
    sample.eps_after_clip = "rederive"
    # The last step goes to 'zero' noise or stops at 'sigma_min', the least that the network knows;
    # 'mean': from there the network's mean of the clean image.
    sample.last_step = "zero"
    # Changes of the prediction, in order: lines of `diffusion.GUIDANCES`, such as
    # ('classifier_free(scale=3.0, interval=(0.28, 5.42))',); (): none. Their numbers may change
    # without a new compilation. Previews leave out those that need another network.
    sample.guidance = ()
    # Which parameters: a name of config.ema; 'params' for the raw ones; or 'posthoc(std=0.15)', the
    # power-function average of that width (relative standard deviation), tracked or not.
    sample.ema = "default"
    # Labels in turn 0, 1, 2, ... ('cycle'), or one class for all images (its number as a string).
    sample.labels = "cycle"
    sample.count = 64
    sample.batch_size = 64
    sample.seed = 0
    # Step of the checkpoint; -1: the newest.
    sample.checkpoint = -1

    # `--mode=convert` writes data.source to the work directory, decoded, at data.image_size and
    # data.channels, for `records(path=...)` to read; data.workers processes decode.
    config.convert = convert = ConfigDict()
    # What the examples are called there: records(path=..., split=...).
    convert.split = "train"
    # Number of files; 0: one for each GiB of pixels.
    convert.shards = 0
    # Which fields are kept, as ('image', 'caption'); (): all that the source has.
    convert.fields = ()

    # `--mode=embed` writes data.source as records with the embeddings of the run, a CLIP.
    config.embed = embed = ConfigDict()
    # What is embedded: a line of `input_pipeline.SOURCES`; '': data.source.
    embed.source = ""
    # What the examples are called: records(path='<workdir>/embeddings', split=...).
    embed.split = "train"
    # Side in pixels of the images that are written; 0: data.image_size, at which CLIP sees them.
    embed.image_size = 0
    # The features of each token of the caption, too (context x width numbers an example).
    embed.text_features = False
    # Images of data.source over which the contract's mean and standard deviation are taken.
    embed.statistics = 10_000

    config.evaluate = evaluate = ConfigDict()
    # Lines of `evaluation.METRICS`, each run over samples, or over real data where a metric is one
    # of the model. Protocols of FID and its kin: 'adm', 'edm', 'clean', ... (docs/evaluation.md).
    evaluate.metrics = ()
    # Samples that are drawn and measured of each setting below; 0: none are drawn, the newest that
    # `--mode=sample` made are measured.
    evaluate.count = 0
    # Settings: all combinations of these. Of each, () is what config.sample says. A guidance is a
    # string as in sample.guidance, several are joined by ' + ', and '' is none.
    evaluate.checkpoints = ()
    evaluate.emas = ()
    evaluate.solvers = ()
    evaluate.steps = ()
    evaluate.guidances = ()
    evaluate.seeds = ()
    # All checkpoints that the run has, in place of a list of their steps.
    evaluate.every_checkpoint = False
    # Images made by anyone, a folder or an .npz with arr_0: they are measured and nothing is drawn.
    evaluate.images = ""
    # What samples are compared with: '', data.source; another line of `input_pipeline.SOURCES`; a
    # folder or .npz of images; or a file of statistics (docs/references.md).
    evaluate.reference = ""
    # Directory with the weights of feature networks; '': they are fetched once into the cache.
    evaluate.weights = ""
    # Images that a feature network sees at a time.
    evaluate.batch_size = 64
    # `--mode=follow`: seconds between looks for a new checkpoint, and without one before it gives
    # up (0: never).
    evaluate.poll = 30.0
    evaluate.patience = 0.0

    # `--mode=likelihood`: bits/dim of real images under the model, with their true labels.
    config.likelihood = likelihood = ConfigDict()
    # How: a line of `diffusion.LIKELIHOOD_METHODS`. 'vlb' (the bound of a discrete chain), 'vdm'
    # (of continuous time) or 'ode' (the probability flow, 'ode(solver="rk4", steps=100)').
    likelihood.method = "vlb"
    # The images: a line of `input_pipeline.SOURCES`; '': data.source with this split.
    likelihood.source = ""
    likelihood.split = "test"
    # How many, in a random order that the seed fixes; 0: all.
    likelihood.count = 0
    likelihood.batch_size = 64
    likelihood.seed = 0
    # Which parameters, as in sample.ema; '': those of sample.ema.
    likelihood.ema = ""
    # Step of the checkpoint; -1: the newest.
    likelihood.checkpoint = -1
    return config
