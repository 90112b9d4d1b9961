"""Scenes of shapes in 1 to 8 network calls, as configs/digits_fewstep.py has it for digits.

    python main.py --config=configs/shapes_fewstep.py --workdir=runs/shapes_fewstep/teacher
    python main.py --config=configs/shapes_fewstep.py:scm --workdir=runs/shapes_fewstep/scm
    python -m benchmarks.few_steps --config=configs/shapes_fewstep.py --root=runs/shapes_fewstep

Needs an accelerator. `:smoke` is a teacher of a handful of steps.
"""

from ml_collections import ConfigDict

from configs import digits_fewstep, shapes_unet


def get_config(variant: str = "") -> ConfigDict:
    """The variants of configs/digits_fewstep.py."""
    config = shapes_unet.get_config("smoke" if variant == "smoke" else "")
    return digits_fewstep.few_step(
        config,
        variant,
        file=__file__,
        teacher="runs/shapes_fewstep/teacher",
        sigma_data=0.5,
        teacher_steps=50_000,
        student_steps=50_000,
        stage_steps=10_000,
    )
