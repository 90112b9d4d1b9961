"""What a stack is before it is trained; DALL-E 2's against the sizes that its paper tells."""

import jax
import pytest

import main
import models
from configs import unclip_paper, unclip_shapes
from pipelines import stack_summary
from training import stack, tasks
from training.config import freeze

# Table 3 of Ramesh et al. 2022.
PAPER = {"decoder": 3.5e9, "upsampler256": 700e6, "upsampler1024": 300e6}


@pytest.fixture(scope="module")
def rows():
    stages = stack.stages(unclip_paper.get_config(), "/runs")
    return {name: stack_summary.summarize(stage) for name, stage in stages.items()}


def test_stages_have_the_papers_size(rows):
    for name, count in PAPER.items():
        assert rows[name]["parameters"] == pytest.approx(count, rel=0.1), name


def test_priors_are_larger_than_the_paper_rounds(rows):
    """'1B' in table 3; but 24 blocks of the width 2048 of the same table are 1.21B alone.

    A block has 12 matrices' worth of width x width: 4 of attention, 8 of the MLP.
    """
    blocks = 24 * 12 * 2048**2
    assert blocks == 1_207_959_552
    assert rows["prior"]["parameters"] == 1_226_188_800
    assert rows["prior_ar"]["parameters"] == 1_220_538_368
    for name in ("prior", "prior_ar"):
        assert blocks < rows[name]["parameters"] < 1.02 * blocks
        assert rows[name]["parameters"] != pytest.approx(1e9, rel=0.1)


def test_clip_is_a_vit_h(rows):
    """The image tower's 32 blocks of width 1280 are those of every ViT-H, 630M with the rest."""
    assert rows["clip"]["parameters"] == 986_523_137
    task = tasks.make_task(freeze(unclip_paper.get_config().stages.clip))
    params = jax.eval_shape(task.init, jax.random.key(0))
    assert 32 * 12 * 1280**2 < models.count_parameters(params["image"]) < 632e6


def test_the_state_is_what_a_run_keeps(rows):
    """float32 parameter, two moments of Adam, one average: 16 bytes each, and a few counters."""
    for row in rows.values():
        assert 0 <= row["state"] - 16 * row["parameters"] < 100


def test_the_table(tmp_path, capsys):
    config = unclip_shapes.get_config("smoke")
    stack_summary.inspect(freeze(config), tmp_path)
    told = capsys.readouterr().out
    text = (tmp_path / "stages.md").read_text()
    assert text in told
    lines = text.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == list(config.order)
    params = tasks.make_task(freeze(stack.stages(config, tmp_path)["prior"])).init(
        jax.random.key(0)
    )
    assert f"| prior | prior | {models.count_parameters(params):,} | " in text
    train = config.stages.clip.train
    assert lines[2].endswith(f" MB | {train.steps} | {train.batch_size} |")
    assert main.STACK_MODES["inspect"] == "pipelines.stack_summary:inspect"
    assert [path.name for path in tmp_path.iterdir()] == ["stages.md"], "nothing else is made"


def test_what_follows_clip_learns_from_the_cleaner_pairs_alone():
    """Section 'Training details' of the appendix: the noisy set is for CLIP."""
    config = unclip_paper.get_config()
    assert unclip_paper.NOISY in config.stages.clip.data.source
    for name, stage in stack.stages(config, "/runs").items():
        assert (stage.data.source == unclip_paper.PAIRS) == (name != "clip"), name
