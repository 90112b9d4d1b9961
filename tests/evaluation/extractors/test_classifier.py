"""Features of a run of task 'classifier', against its own logits."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits, digits_classifier
from diffusion import to_model
from evaluation.extractors import EXTRACTORS, Runner
from tests.evaluation.extractors import runs
from training.components import ConfigError
from training.mesh import make_mesh
from training.workdir import Workdir

SMALL = {"channels": 8, "channel_mult": (1,), "norm_groups": 4, "num_res_blocks": 1}
IMAGES = np.random.RandomState(0).randint(0, 256, (5, 8, 8, 1)).astype(np.uint8)


def start(path, pool):
    """A small run."""
    config = digits_classifier.get_config("smoke")
    config.model.update(SMALL, head_channels=4, attention_resolutions=(), pool=pool)
    return runs.start(path, config)


@pytest.mark.parametrize("pool", ["attention", "mean"])
def test_embedding_and_logits(tmp_path, pool):
    task, params = start(tmp_path, pool)
    extractor = EXTRACTORS["classifier"](str(tmp_path))
    found = Runner(extractor, make_mesh(devices=jax.devices()[:1]), batch_size=5)(IMAGES)
    assert {k: v.shape[1] for k, v in found.items()} == dict(extractor.outputs)
    # The least noise of its thousand levels.
    level = task.schedule.level(jnp.float32(0))
    expected = jax.jit(task.logits)(params, level.alpha * to_model(IMAGES), level)
    np.testing.assert_allclose(found["logits"], expected, atol=1e-5)
    last = params["pool"]["projection"] if pool == "attention" else params["pool"]
    again = found["embedding"] @ np.asarray(last["kernel"]) + np.asarray(last["bias"])
    np.testing.assert_allclose(again, expected, atol=1e-4)
    assert np.asarray(expected).std() > 0.01
    identity = extractor.identity
    assert (extractor.name, identity["checkpoint"], identity["ema"]) == ("classifier", 3, "default")
    assert json.loads(json.dumps(identity)) == identity


def test_another_task_is_refused(tmp_path):
    Workdir(tmp_path).start(digits.get_config("smoke"), [])
    with pytest.raises(ConfigError, match="is a run of task 'diffusion' on"):
        EXTRACTORS["classifier"](str(tmp_path))
