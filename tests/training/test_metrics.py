import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from training import metrics as metrics_module
from training.metrics import MetricsWriter, read_lines
from training.workdir import Workdir


def _workdir(path):
    workdir = Workdir(path)
    workdir.path.mkdir(parents=True, exist_ok=True)
    return workdir


def test_a_line_is_a_function_of_the_values(tmp_path):
    workdir = _workdir(tmp_path)
    writer = MetricsWriter(workdir, tensorboard=False)
    writer.scalars(1, {"loss": jnp.float32(0.1), "bad_steps": jnp.int32(2), "a": 0.1})
    writer.scalars(2, {"a": np.float64(0.1), "loss": 1.5, "bad_steps": 0})
    assert workdir.metrics.read_text() == (
        '{"step": 1, "a": 0.1, "bad_steps": 2, "loss": 0.10000000149011612}\n'
        '{"step": 2, "a": 0.1, "bad_steps": 0, "loss": 1.5}\n'
    )


def test_line_is_on_disk_when_the_call_returns(tmp_path, monkeypatch):
    workdir = _workdir(tmp_path)
    synced = []
    monkeypatch.setattr(
        metrics_module.os, "fsync", lambda _: synced.append(workdir.metrics.read_text())
    )
    MetricsWriter(workdir, tensorboard=False).scalars(1, {"loss": 1.0})
    assert synced == ['{"step": 1, "loss": 1.0}\n']


@given(value=st.floats(allow_nan=True, allow_infinity=True))
def test_any_float_is_strict_json_and_reads_back(tmp_path_factory, value):
    workdir = _workdir(tmp_path_factory.mktemp("run"))
    MetricsWriter(workdir, tensorboard=False).scalars(3, {"loss": value})

    def no_constant(name):
        raise AssertionError(f"{name} is not JSON")

    json.loads(workdir.metrics.read_text(), parse_constant=no_constant)
    ((line),) = read_lines(workdir.metrics)
    assert line["step"] == 3
    assert line["loss"] == value or (math.isnan(line["loss"]) and math.isnan(value))


def test_array_metric_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'loss' has shape \(2,\)"):
        MetricsWriter(_workdir(tmp_path), tensorboard=False).scalars(1, {"loss": jnp.zeros(2)})


@pytest.mark.parametrize("kill", [b"", b'{"step": 70, "lo', b'{"step": 70, "loss": 1.0}'])
def test_resumed_file_equals_unbroken_run(tmp_path, kill):
    def log(writer, steps):
        for step in steps:
            writer.scalars(step, {"loss": 1 / step, "nan": math.nan})
            writer.timing(step, {"seconds": 0.5, "mfu": None})

    whole, broken = _workdir(tmp_path / "whole"), _workdir(tmp_path / "broken")
    log(MetricsWriter(whole, tensorboard=False), range(10, 101, 10))

    log(MetricsWriter(broken, tensorboard=False), range(10, 70, 10))
    for path in (broken.metrics, broken.timing):
        path.write_bytes(path.read_bytes() + kill)
    resumed = MetricsWriter(broken, tensorboard=False)
    resumed.rewind(40)
    assert [line["step"] for line in read_lines(broken.metrics)] == [10, 20, 30, 40]
    log(resumed, range(50, 101, 10))
    assert broken.metrics.read_bytes() == whole.metrics.read_bytes()
    assert broken.timing.read_bytes() == whole.timing.read_bytes()


def test_rewind_before_any_file_and_after_a_value(tmp_path):
    writer = MetricsWriter(_workdir(tmp_path), tensorboard=True)
    writer.rewind(0)
    writer.scalars(1, {"loss": 1.0})
    with pytest.raises(RuntimeError, match="before the first value"):
        writer.rewind(0)
    writer.close()


def _events(workdir):
    """(step, tag or session start) of all events in the files, in the order of writing."""
    found = []
    for path in sorted(workdir.path.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            if event.session_log.status:
                found.append((event.step, "start"))
            found += [(event.step, value.tag) for value in event.summary.value]
    return found


def test_tensorboard_gets_the_same_values_and_hides_what_was_rewound(tmp_path, monkeypatch):
    workdir = _workdir(tmp_path)
    first = MetricsWriter(workdir, tensorboard=True)
    first.scalars(10, {"loss": 1.0})
    first.timing(10, {"images_per_second": 5.0, "mfu": None})
    first.scalars(20, {"loss": 1.0})
    first.close()
    monkeypatch.setattr(metrics_module.os, "getpid", lambda: 10**9)  # a restarted process
    second = MetricsWriter(workdir, tensorboard=True)
    second.rewind(10)
    second.images(20, np.zeros((4, 4, 1), np.uint8))
    second.close()
    assert sorted(_events(workdir)) == sorted(
        [
            (10, "loss"),
            (10, "timing/images_per_second"),
            (20, "loss"),
            (11, "start"),
            (20, "preview"),
        ]
    )


def test_preview_file(tmp_path):
    workdir = _workdir(tmp_path)
    grid = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    MetricsWriter(workdir, tensorboard=False).images(120, grid)
    np.testing.assert_array_equal(Image.open(workdir.previews / "00000120.png"), grid)


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_module.jax, "process_index", lambda: 1)
    workdir = _workdir(tmp_path)
    writer = MetricsWriter(workdir, tensorboard=True)
    writer.rewind(0)
    writer.scalars(1, {"loss": 1.0})
    writer.timing(1, {"seconds": 1.0})
    writer.images(1, np.zeros((4, 4, 1), np.uint8))
    writer.close()
    assert list(workdir.path.iterdir()) == []
