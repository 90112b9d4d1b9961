"""Digits in 1 to 8 network calls: distilled from a teacher, or trained from scratch.

    python main.py --config=configs/digits_fewstep.py --workdir=runs/fewstep/teacher
    python main.py --config=configs/digits_fewstep.py:progressive --workdir=runs/fewstep/steps8
    python main.py --config=configs/digits_fewstep.py:meanflow --workdir=runs/fewstep/meanflow

Without a variant it is the teacher: rectified flow with EDM's preconditioning, sampled by Heun. The
variants that distil read it from runs/fewstep/teacher; `--config.task` names another place.
`python -m benchmarks.few_steps` runs all of them in order and makes the table of docs/few_steps.md.
A few minutes each on two CPU cores. `:smoke` is a teacher of a handful of steps.
"""

from ml_collections import ConfigDict

from configs import base, digits

TEACHER = "runs/fewstep/teacher"


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '' (the teacher), 'smoke', and one for each task of few-step generation."""
    tasks = {
        "progressive": f"progressive(teacher={TEACHER!r}, steps=8)",
        "guidance_distillation": f"guidance_distillation(teacher={TEACHER!r}, low=1.0, high=4.0)",
        "consistency": "consistency(start=10, end=640, double_every=100)",
        "consistency_distillation": f"consistency(teacher={TEACHER!r}, start=20, end=160, "
        "double_every=200)",
        "scm": "scm(warmup=200)",
        "scm_distillation": f"scm(teacher={TEACHER!r}, warmup=200)",
        "meanflow": "meanflow(equal=0.25)",
        "shortcut": "shortcut(share=0.25)",
    }
    base.check_variant(__file__, variant, ("", "smoke", *tasks))
    config = digits.get_config("smoke" if variant == "smoke" else "")
    # Clean data is at t = 0; networks are asked on [0.01, 0.99], sigma / alpha from 0.01 to 99.
    config.diffusion.update(
        schedule="rectified_flow(margin=0.01)",
        parameterization="edm(sigma_data=0.75)",
        time_sampler="uniform(low_discrepancy=True)",
    )
    if variant != "smoke":
        config.train.steps = 1600
    # Every row of the table is of the class-conditional model without guidance.
    config.sample.update(solver="heun()", grid="uniform", steps=25, guidance=1.0)
    if variant in tasks:
        config.task = tasks[variant]
        config.train.steps = 800
        config.optimizer.learning_rate = 1e-3
        # A dropped label would take capacity from a student that is sampled without guidance.
        config.diffusion.label_dropout = 0.0
    if variant == "progressive":
        config.diffusion.weighting = "truncated_snr"
        config.train.steps = 200
        config.sample.update(solver="ddim(eta=0.0)", steps=8)
    elif variant == "guidance_distillation":
        config.train.steps = 200
    elif variant.startswith(("consistency", "scm")):
        config.sample.update(solver="consistency()", steps=2)
        if variant.startswith("scm"):
            config.diffusion.uncertainty_channels = 64
    elif variant in ("meanflow", "shortcut"):
        config.sample.update(solver="flow_map()", steps=1, clip="none")
    return config
