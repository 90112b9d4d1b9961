import re

import jax
import pytest

from benchmarks.diffusers_job import sample_job, train_job, unet2d
from configs import cifar10_ddpm, digits, shapes_unet
from models.pretrained.diffusers import unet_config
from training.components import ConfigError


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def ddpm(**fields):
    config = cifar10_ddpm.get_config()
    config.update_from_flattened_dict(fields)
    return config


def test_what_is_trained():
    job = train_job(ddpm(**{"train.batch_size": 16}), "eager")
    assert (job["what"], job["mode"], job["platform"]) == ("train", "eager", "cpu")
    assert (job["batch_size"], job["accumulate"], job["dtype"]) == (16, 1, "float32")
    assert (job["learning_rate"], job["adam_betas"], job["eps"]) == (2e-4, [0.9, 0.999], 1e-8)
    assert (job["clip_norm"], job["ema_decay"]) == (1.0, 0.9999)
    assert len(job["betas"]) == 1000
    assert (job["betas"][0], job["betas"][-1]) == (pytest.approx(1e-4), pytest.approx(0.02))


def test_what_is_sampled():
    config = ddpm(**{"sample.solver": "ddim(eta=0.5)", "sample.steps": 10, "sample.clip": "static"})
    job = sample_job(config, "compile")
    assert (job["what"], job["solver"], job["steps"]) == ("sample", "ddim", 10)
    assert job["scheduler"] == {"clip_sample": True, "timestep_spacing": "linspace"}
    assert job["scheduler_step"]["eta"] == 0.5
    config = ddpm(**{"sample.solver": "ddpm(variance='fixed_large')", "sample.clip": "none"})
    job = sample_job(config, "eager")
    assert job["scheduler"]["variance_type"] == "fixed_large"
    assert not job["scheduler"]["clip_sample"]


@pytest.mark.parametrize("module", [cifar10_ddpm, shapes_unet, digits])
def test_network_is_that_of_the_config(module):
    """What a checkpoint of this UNet2DModel is read as is the config's network."""
    config = module.get_config()
    theirs = unet2d(config)
    assert theirs.pop("attn_norm_num_groups") == config.model.norm_groups
    read = unet_config(theirs)
    for field in (
        "channels",
        "channel_mult",
        "num_res_blocks",
        "attention_resolutions",
        "conditioning",
        "resample",
        "norm_groups",
    ):
        assert getattr(read, field) == config.model[field], field


@pytest.mark.parametrize(
    ("job", "field", "value"),
    [
        (train_job, "task", "classifier"),
        (train_job, "model.name", "dit"),
        (train_job, "model.num_heads", 4),
        (train_job, "model.remat", True),
        (train_job, "diffusion.parameterization", "v"),
        (train_job, "diffusion.loss", "hybrid"),
        (train_job, "diffusion.weighting", "min_snr(gamma=5.0)"),
        (train_job, "diffusion.uncertainty_channels", 16),
        (train_job, "data.device_augmentation", "edm(probability=0.1)"),
        (train_job, "optimizer.sam_rho", 0.05),
        (train_job, "diffusion.schedule", "rectified_flow"),
        (train_job, "optimizer.name", "muon"),
        (sample_job, "sample.solver", "heun"),
        (sample_job, "sample.guidance", ("classifier_free(scale=2.0)",)),
        (sample_job, "sample.grid", "uniform"),
    ],
)
def test_what_has_no_equal_is_refused_by_name(job, field, value):
    with pytest.raises(
        ConfigError, match=re.escape(f"--against=diffusers: config.{field} = {value!r}")
    ):
        job(ddpm(**{field: value}), "eager")


def test_two_averages_or_two_devices_are_refused(monkeypatch):
    config = ddpm()
    config.ema.slow = "constant(decay=0.99999)"
    with pytest.raises(ConfigError, match=r"config\.ema has 2 averages, not 1"):
        train_job(config, "eager")
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="one device, and JAX sees 2"):
        sample_job(ddpm(**{"sample.solver": "ddim"}), "eager")
