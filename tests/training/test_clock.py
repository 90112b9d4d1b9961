import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import clock as clock_module
from training.clock import Clock, Progress, rate


class FakeTime:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def fake():
    return FakeTime()


def test_parts_nest_and_the_rest_is_other(fake):
    clock = Clock(fake)
    fake.now += 1
    with clock("step"):
        fake.now += 2
        with clock("compile"):
            fake.now += 4
        fake.now += 8
    with clock("data"):
        fake.now += 16
    assert clock.split() == {"other": 1, "step": 10, "compile": 4, "data": 16}


def test_split_starts_anew_and_totals_do_not(fake):
    clock = Clock(fake)
    with clock("step"):
        fake.now += 2
        assert clock.split()["step"] == 2
        fake.now += 3
    assert clock.split()["step"] == 3
    assert clock.totals() == {"other": 0, "step": 5}


def test_a_part_that_raises_is_closed(fake):
    clock = Clock(fake)
    with pytest.raises(KeyError), clock("step"):
        raise KeyError
    fake.now += 1
    assert clock.split()["other"] == 1


@given(
    durations=st.lists(
        st.tuples(st.sampled_from(["data", "step", "outside"]), st.integers(0, 10)), max_size=20
    )
)
def test_parts_sum_to_wall_time(durations):
    fake = FakeTime()
    clock = Clock(fake)
    for part, seconds in durations:
        if part == "outside":
            fake.now += seconds
        else:
            with clock(part):
                fake.now += seconds
    assert sum(clock.split().values()) == sum(seconds for _, seconds in durations)


def test_rate_counts_data_and_step_only():
    split = {"compile": 50.0, "data": 1.0, "step": 3.0, "checkpoint": 7.0, "preview": 9.0}
    assert rate(400, split) == 100.0
    assert rate(400, {"compile": 50.0}) is None


def test_eta_leaves_compiling_out(fake):
    clock = Clock(fake)
    assert clock.eta(done=0, remaining=10) is None
    with clock("compile"):
        fake.now += 1000
    with clock("step"):
        fake.now += 8
    with clock("checkpoint"):
        fake.now += 2
    assert clock.eta(done=5, remaining=10) == 20


def test_plain_lines_in_a_file():
    stream = io.StringIO()
    progress = Progress(total=1000, stream=stream)
    for step in range(1, 201):
        progress.update(step)
        if step % 100 == 0:
            progress.log(step, {"loss": 0.012345, "images/s": 512.0}, eta=65.4)
    progress.close()
    assert stream.getvalue() == (
        "step 100/1000  loss 0.01235  images/s 512  eta 0:01:05\n"
        "step 200/1000  loss 0.01235  images/s 512  eta 0:01:05\n"
    )


def test_other_processes_show_nothing(monkeypatch):
    monkeypatch.setattr(clock_module.jax, "process_index", lambda: 1)
    stream = io.StringIO()
    progress = Progress(total=10, stream=stream)
    progress.update(1)
    progress.log(1, {"loss": 0.5})
    progress.close()
    assert stream.getvalue() == ""


def test_bar_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    progress = Progress(total=10, done=4, stream=stream)
    progress.update(5)
    progress.log(6, {"loss": 0.5})
    progress.close()
    assert "\r" in stream.getvalue()
    assert "6/10" in stream.getvalue()
    assert "loss 0.5" in stream.getvalue()
