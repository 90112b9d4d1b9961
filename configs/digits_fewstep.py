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


def get_config(variant: str = "") -> ConfigDict:
    """Variants: '' (the teacher), 'smoke', and those of `few_step`."""
    return few_step(
        digits.get_config("smoke" if variant == "smoke" else ""),
        variant,
        file=__file__,
        teacher="runs/fewstep/teacher",
        sigma_data=0.75,
        teacher_steps=1600,
        student_steps=800,
        stage_steps=200,
    )


def few_step(
    config: ConfigDict,
    variant: str,
    *,
    file: str,
    teacher: str,
    sigma_data: float,
    teacher_steps: int,
    student_steps: int,
    stage_steps: int,
) -> ConfigDict:
    """Turns the config of a diffusion model into that of a teacher or of one of its students.

    file: the config's, for messages.
    sigma_data: of EDM's preconditioning, the data's standard deviation.
    stage_steps: of a stage of progressive distillation, and of guidance distillation.
    """
    eighth, quarter = student_steps // 8, student_steps // 4
    tasks = {
        "progressive": f"progressive(teacher={teacher!r}, steps=8)",
        "guidance_distillation": f"guidance_distillation(teacher={teacher!r}, low=1.0, high=4.0)",
        "consistency": f"consistency(start=10, end=640, double_every={eighth})",
        "consistency_distillation": f"consistency(teacher={teacher!r}, start=20, end=160, "
        f"double_every={quarter})",
        "scm": f"scm(warmup={quarter})",
        "scm_distillation": f"scm(teacher={teacher!r}, warmup={quarter})",
        "meanflow": "meanflow(equal=0.25)",
        "shortcut": "shortcut(share=0.25)",
    }
    base.check_variant(file, variant, ("", "smoke", *tasks))
    # Clean data is at t = 0; networks are asked on [0.01, 0.99], sigma / alpha from 0.01 to 99.
    config.diffusion.update(
        schedule="rectified_flow(margin=0.01)",
        parameterization=f"edm(sigma_data={sigma_data})",
        time_sampler="uniform(low_discrepancy=True)",
    )
    if variant != "smoke":
        config.train.steps = teacher_steps
    # Every row of the table is of the class-conditional model without guidance.
    config.sample.update(solver="heun()", grid="uniform", steps=25, guidance=())
    if variant in tasks:
        config.task = tasks[variant]
        config.train.steps = student_steps
        config.optimizer.learning_rate = config.optimizer.learning_rate / 2
        # A dropped label would take capacity from a student that is sampled without guidance.
        config.diffusion.label_dropout = 0.0
    if variant == "progressive":
        config.diffusion.weighting = "truncated_snr"
        config.train.steps = stage_steps
        config.sample.update(solver="ddim(eta=0.0)", steps=8)
    elif variant == "guidance_distillation":
        config.train.steps = stage_steps
    elif variant.startswith(("consistency", "scm")):
        config.sample.update(solver="consistency()", steps=2)
        if variant.startswith("scm"):
            config.diffusion.uncertainty_channels = 64
    elif variant in ("meanflow", "shortcut"):
        config.sample.update(solver="flow_map()", steps=1, clip="none")
    return config
