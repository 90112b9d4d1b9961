"""Features of a classifier that was trained here, for data that ImageNet's networks do not know."""

import jax.numpy as jnp
import numpy as np

import diffusion
from evaluation.extractors.base import Extractor, exact
from evaluation.extractors.clip import scaled
from training import checkpoints, contract, mesh, tasks
from training.components import ConfigError
from training.config import freeze
from training.tasks.classifier import ClassifierTask
from training.workdir import Workdir


def classifier(workdir: str, ema: str = "", checkpoint: int = -1) -> Extractor:
    """Outputs 'embedding', what the last layer is given, and 'logits'.

    Distances of such features are no FID, and compare with those of the same classifier only. It
    knows noisy images, and is asked at the least noise of its schedule, of which none is added.
    Images of other sides are resized to the run's by an antialiased bicubic filter.

    Args:
        workdir: of a run of task 'classifier'.
        ema: which parameters, as in `config.sample.ema`; '': those that its config names.
        checkpoint: step; -1: the newest.
    """
    there = Workdir(workdir)
    config = freeze(there.read_config())
    task = tasks.make_task(config)
    if not isinstance(task, ClassifierTask) or task.field != "image":
        raise ConfigError(
            f"extractor classifier: {workdir} is a run of task {config.task!r} on data.field = "
            f"{config.data.field!r}; needed is one of task 'classifier' on 'image'"
        )
    ema = ema or config.sample.ema
    params, step = checkpoints.restore_for_sampling(
        there.checkpoints, ema, task.init, mesh.make_mesh(), checkpoint, config.ema
    )
    data, schedule = config.data, task.schedule
    level = schedule.level(np.float64(schedule.t_range[0]))
    level = diffusion.NoiseLevel(*(jnp.float32(field) for field in level))

    def apply(params, images):
        x = level.alpha * scaled(images, data.image_size, data.channels)
        x, time = task.parameterization.network_input(x, level, schedule)
        time = jnp.broadcast_to(jnp.asarray(time), x.shape[:1])
        logits, embedding = task.network.apply(params, x, time, features=True)
        return {"embedding": jnp.float32(embedding), "logits": jnp.float32(logits)}

    last = params["pool"].get("projection", params["pool"])
    return Extractor(
        name="classifier",
        outputs={"embedding": last["kernel"].shape[0], "logits": task.num_classes},
        identity={
            "extractor": "classifier",
            "checkpoint": step,
            "ema": ema,
            "weights": contract.identify(config.model.to_dict(), params),
            "dtype": config.model.dtype,
            "precision": "highest",
        },
        params=params,
        apply=exact(apply),
    )
