"""From a config to the job for `benchmarks.against_diffusers`: the same work, for UNet2DModel."""

from collections.abc import Mapping
from typing import Any

import jax

import diffusion
from diffusion.schedules import Discrete
from training import components
from training.components import ConfigError

# Fields that have to be what diffusers' network, training or scheduler is.
_NETWORK = {
    "task": ("diffusion",),
    "model.name": ("unet",),
    "model.resample": ("conv", "conv_symmetric"),
    "diffusion.parameterization": ("eps",),
    "diffusion.variance": ("fixed",),
}
_TRAINING = {
    "model.remat": (False,),
    "diffusion.loss": ("simple",),
    "diffusion.weighting": ("constant",),
    # Each changes what a step computes.
    "diffusion.uncertainty_channels": (0,),
    "data.device_augmentation": ("",),
    "optimizer.sam_rho": (0.0,),
}
_SAMPLING = {
    "sample.grid": ("respaced",),
    "sample.last_step": ("zero",),
    "sample.guidance": ((),),
    "sample.clip": ("none", "static"),
}


def train_job(config: Any, mode: str) -> dict[str, Any]:
    """What is to be trained: all of a config that decides the time of a step.

    mode: 'eager' or 'compile'.

    Raises:
        ConfigError: diffusers has no equal of the config; the message names the field.
    """
    _require(config, _NETWORK | _TRAINING)
    adam = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}
    adam |= _component("optimizer.name", config.optimizer.name, {"adam": adam})[1]
    if len(config.ema) != 1:
        raise ConfigError(f"--against=diffusers: config.ema has {len(config.ema)} averages, not 1")
    ((name, average),) = config.ema.items()
    average = {"decay": 0.9999} | _component(f"ema.{name}", average, {"constant": {"decay"}})[1]
    return _job(config, mode) | {
        "what": "train",
        "batch_size": config.train.batch_size,
        "accumulate": config.train.accumulate,
        "learning_rate": config.optimizer.learning_rate,
        "adam_betas": [adam["b1"], adam["b2"]],
        "eps": adam["eps"],
        "clip_norm": config.optimizer.clip_norm,
        "ema_decay": average["decay"],
    }


def sample_job(config: Any, mode: str) -> dict[str, Any]:
    """What is to be sampled, as `train_job`: the solver as a scheduler of diffusers."""
    _require(config, _NETWORK | _SAMPLING)
    allowed = {"ddpm": {"variance"}, "ddim": {"eta"}}
    solver, arguments = _component("sample.solver", config.sample.solver, allowed)
    scheduler = {"clip_sample": config.sample.clip == "static", "timestep_spacing": "linspace"}
    each = {}
    if solver == "ddpm":
        scheduler["variance_type"] = arguments.get("variance", "fixed_small")
    else:
        clipped = config.sample.eps_after_clip == "rederive"
        each = {"eta": arguments.get("eta", 0.0), "use_clipped_model_output": clipped}
    return _job(config, mode) | {
        "what": "sample",
        "batch_size": config.sample.batch_size,
        "solver": solver,
        "scheduler": scheduler,
        "scheduler_step": each,
        "steps": config.sample.steps,
    }


def unet2d(config: Any) -> dict[str, Any]:
    """Arguments of diffusers' UNet2DModel for `config.model`; the reverse of
    `models.pretrained.diffusers.unet_config`.
    """
    model, size = config.model, config.data.image_size
    if model.num_heads != 1 and not model.head_channels:
        raise ConfigError(
            f"--against=diffusers: config.model.num_heads = {model.num_heads}: UNet2DModel takes "
            "one head or a fixed number of channels a head (config.model.head_channels)"
        )
    levels = range(len(model.channel_mult))
    attended = [size >> level in model.attention_resolutions for level in levels]
    return {
        "sample_size": size,
        "in_channels": config.data.channels,
        "out_channels": config.data.channels,
        "block_out_channels": [round(model.channels * mult) for mult in model.channel_mult],
        "layers_per_block": model.num_res_blocks,
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attended],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)],
        "attention_head_dim": model.head_channels or None,
        "dropout": model.dropout,
        "resnet_time_scale_shift": "default" if model.conditioning == "add" else "scale_shift",
        "downsample_padding": 1 if model.resample == "conv_symmetric" else 0,
        "flip_sin_to_cos": model.time_embedding == "adm",
        "freq_shift": 0 if model.time_embedding == "adm" else 1,
        "norm_num_groups": model.norm_groups,
        # With scale and shift the middle block's attention has no norm unless it is asked for.
        "attn_norm_num_groups": model.norm_groups,
        "norm_eps": model.norm_eps,
        "num_class_embeds": model.num_classes + model.null_class or None,
    }


def _job(config: Any, mode: str) -> dict[str, Any]:
    schedule = components.build(
        diffusion.SCHEDULES, config.diffusion.schedule, "config.diffusion.schedule"
    )
    if not isinstance(schedule, Discrete):
        raise ConfigError(
            f"--against=diffusers: config.diffusion.schedule = {config.diffusion.schedule!r}: "
            "only schedules of discrete steps, 'linear' and 'cosine'"
        )
    if jax.device_count() > 1:
        raise ConfigError(
            f"--against=diffusers runs on one device, and JAX sees {jax.device_count()}"
        )
    return {
        "mode": mode,
        "platform": jax.default_backend(),
        "dtype": config.model.dtype,
        "unet": unet2d(config),
        "betas": schedule.betas.tolist(),
    }


def _require(config: Any, fields: Mapping[str, tuple]) -> None:
    for field, allowed in fields.items():
        value = config
        for part in field.split("."):
            value = value[part]
        if value not in allowed:
            options = " or ".join(map(repr, allowed))
            raise ConfigError(
                f"--against=diffusers: config.{field} = {value!r} has no equal there, "
                f"only {options}"
            )


def _component(field: str, string: str, allowed: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a component, if diffusers has it with them."""
    name, arguments = components.parse(string)
    if name not in allowed or not set(arguments) <= set(allowed[name]):
        options = " or ".join(
            f"{key}({', '.join(sorted(names))})" for key, names in allowed.items()
        )
        raise ConfigError(
            f"--against=diffusers: config.{field} = {string!r} has no equal there, only {options}"
        )
    return name, arguments
