import argparse
import sys
import types
from pathlib import Path

import pytest

from benchmarks import peer

STANDIN = Path(__file__).with_name("standin.py")


def start(**job):
    return peer.Peer(sys.executable, job, STANDIN)


def test_a_call_is_a_step_of_the_other_program():
    with start(parameters=7, seconds=0.5) as other:
        assert other.about == {"parameters": 7, "device": "none"}
        assert [other(), other()] == [0.5, 1.0]
        assert other.peak_bytes == 2 * 2**20
        assert other.start_seconds > 0


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"fail": "RuntimeError: no"}, "--against=diffusers: RuntimeError: no$"),
        ({"fail": "ModuleNotFoundError: No module named 'torch'"}, "--peer-python=/path/to"),
        ({"quit": True}, "exit code 3"),
    ],
)
def test_why_it_cannot_is_told(job, message):
    with pytest.raises(peer.PeerError, match=message):
        start(**job)


def test_a_failure_in_a_step():
    with (
        start(parameters=7, fail_later="out of memory") as other,
        pytest.raises(peer.PeerError, match="out of memory"),
    ):
        other()


def test_an_interpreter_that_is_not_there():
    with pytest.raises(peer.PeerError, match=r"--peer-python=/no/python does not start: No such"):
        peer.Peer("/no/python", {}, STANDIN)


def test_another_network_is_refused():
    jobs = {"eager": {"parameters": 1001, "seconds": 1.0}}
    with (
        pytest.raises(peer.PeerError, match="it has 1,001 parameters, ours 1,000"),
        peer.against(jobs, sys.executable, 1000, STANDIN),
    ):
        pass


def test_ratios_are_those_of_neighbours():
    calls = []

    def timed(name, seconds):
        values = iter(seconds)

        def call():
            calls.append(name)
            return next(values)

        return call

    programs = {"ours": timed("ours", [9, 2, 6, 8]), "eager": timed("eager", [9, 1, 2, 2])}
    seconds = peer.interleave(programs, rounds=3, warm_up=1)
    assert calls == ["ours", "eager"] * 4
    assert seconds == {"ours": [2, 6, 8], "eager": [1, 2, 2]}
    other = types.SimpleNamespace(about={"parameters": 7}, start_seconds=1.0, peak_bytes=2**21)
    compared = peer.compare(seconds["ours"], {"eager": other}, seconds)
    assert compared["eager"]["ratio_median"] == 3  # of 2, 3, 4
    assert compared["eager"]["step_seconds_median"] == 2
    lines = peer.rows(compared)
    assert lines["torch eager"] == "2000.00 ms, 2 MiB"
    assert lines["ours / eager"] == "3.000 (2.200 to 3.800)"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], []),
        (["--against=diffusers"], ["eager", "compile"]),
        (["--against=diffusers", "--peer-modes=eager"], ["eager"]),
    ],
)
def test_modes(flags, expected):
    parser = argparse.ArgumentParser()
    peer.add_flags(parser)
    assert peer.modes(parser.parse_args(flags)) == expected
    with pytest.raises(peer.PeerError, match="--peer-modes=fast: allowed are eager,compile"):
        peer.modes(parser.parse_args(["--against=diffusers", "--peer-modes=fast"]))
