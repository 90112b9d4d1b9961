import contextlib
import io
import json

import pytest

from launch import plan

TINY = (
    "--config=configs/digits.py:smoke",
    "--config.model.channels=64",
    "--config.model.channel_mult=1",
    "--config.model.num_res_blocks=1",
    "--config.model.attention_resolutions=()",
    "--config.train.batch_size=16",
    "--config.train.steps=20",
    "--backend=cpu",
)


@pytest.fixture(scope="module")
def printed():
    """The numbers of a tiny run on two chips, by the command."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = plan.main([*TINY, "--chips=v5e-2", "--config.mesh.fsdp=2", "--json"])
    return code, json.loads(out.getvalue())


def test_numbers_of_a_run(printed):
    code, numbers = printed
    assert code == 0
    assert numbers["fits"]
    assert numbers["mesh"] == {"data": 1, "fsdp": 2, "tensor": 1}
    memory = numbers["memory"]
    # Two moments and one average; what is below the threshold is whole on both devices.
    whole = 4 * numbers["parameters"]
    assert whole / 2 < memory["parameters"] < whole
    assert memory["averages"] == memory["parameters"]
    assert 2 * memory["parameters"] <= memory["optimizer"] <= 2 * memory["parameters"] + 16
    assert memory["batch"] == 16 // 2 * (8 * 8 + 4)
    assert memory["temporaries"] > 0
    assert memory["total"] == sum(v for k, v in memory.items() if k != "total")
    assert numbers["collectives"]["all-gather"]["bytes"] == pytest.approx(
        2 * (whole - memory["parameters"]), rel=1e-6
    )


def test_time_follows_from_flops_and_mfu(printed):
    _, numbers = printed
    seconds = numbers["flops"] / (2 * 197e12 * 0.4)
    assert numbers["step_seconds"] == pytest.approx(seconds)
    assert numbers["images_per_second"] == pytest.approx(16 / seconds)
    assert numbers["days"] == pytest.approx(20 * seconds / 86400)


def test_what_does_not_fit_is_told_with_advice(printed):
    _, numbers = printed
    config, _ = plan.read(TINY[0][9:], [], "")
    config.mesh.update(data=2, fsdp=1)
    small = numbers | {"fits": False, "mesh": {"data": 2, "fsdp": 1, "tensor": 1}}
    small["advice"] = plan.advice(config, small)
    text = plan.table(small)
    assert "NO" in text
    assert "largest" in text
    assert "--config.mesh.fsdp=-1" in text
    assert "--config.model.remat=True" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/unclip_paper.py", "--chips=v5p-8"], "is a stack; it has clip, prior"),
        (["--config=configs/unclip_paper.py", "--chips=v5p-8", "--stage=decod"], "'decoder'"),
        ([*TINY, "--chips=v5p-8", "--stage=decoder"], "single run"),
        ([*TINY, "--chips=b200-8"], "no kind 'b200'"),
        ([*TINY, "--chips=v5p-8", "--mfu=40"], "at most 1"),
        ([*TINY, "--chips=v5e-2", "--config.mesh.fsdp=3"], "does not arrange 2 devices"),
    ],
)
def test_mistakes(arguments, message, capsys):
    assert plan.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_stage_of_a_stack_has_its_teacher():
    config, teachers = plan.read(
        "configs/unclip_paper.py", ["--config.train.batch_size=512"], "decoder"
    )
    assert config.train.batch_size == 512
    assert config.task.startswith("decoder(")
    assert teachers["clip"].task == "clip"
