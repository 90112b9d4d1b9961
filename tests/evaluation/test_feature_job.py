"""Metrics of features over settings of a run: rows, restarts, errors before anything is drawn."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from evaluation import features, job, metrics, references
from evaluation import rows as evaluation_rows
from pipelines import chunks, sampling
from tests.evaluation import toy_run
from tests.evaluation.toy_run import make_config, rows, start
from training.components import ConfigError
from training.config import freeze

ROOT = Path(__file__).parents[2]
GRID = {"every_checkpoint": True, "seeds": (0, 1)}


def samples_of(path, row):
    return chunks.Chunks(epath.Path(path) / "samples" / row["samples"] / "chunks", 8).read(20)[
        "images"
    ]


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    toy_run.install(monkeypatch)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Of two checkpoints and two seeds."""
    path = tmp_path_factory.mktemp("unbroken")
    start(path, make_config(), 10, 20)
    with pytest.MonkeyPatch.context() as patch:
        toy_run.install(patch)
        job.evaluate(freeze(make_config(**GRID)), path)
    return path


def test_a_row_for_each_setting(unbroken):
    found = rows(unbroken)
    what = [(row["info"]["checkpoint"], row["info"]["sample"]["seed"]) for row in found]
    assert what == [(10, 0), (10, 1), (20, 0), (20, 1)]
    assert len({row["values"]["distance"] for row in found}) == 4
    for row in found:
        assert row["extractor"] == {"name": "colours", "bad": False}
        assert row["reference"]["images"]["count"] == 359
        assert row["info"]["network_calls_per_image"] == 3
        assert row["values"]["count"] == row["count"] == 20
    (line, *_) = (unbroken / "evaluation" / "features.jsonl").read_text().splitlines()
    assert {"compile", "step", "metric"} <= json.loads(line)["seconds"].keys()
    assert "versions" in json.loads(line)["provenance"]


def test_values_are_those_of_all_features_at_once(unbroken):
    row = rows(unbroken)[0]
    images = samples_of(unbroken, row)
    see = toy_run.colours()
    generated = np.asarray(see.apply(see.params, images)["embedding"])
    source = job._source("digits(split='test')", make_config(), "")
    real = references.SourceImages(source, 8, 1).rows(0, 359)
    reference = np.asarray(see.apply(see.params, real)["embedding"])
    wanted = metrics.frechet_distance(generated, reference)
    assert row["values"]["distance"] == pytest.approx(wanted.distance, rel=1e-6)
    wanted = metrics.precision_recall(generated, reference)
    assert row["values"]["recall"] == pytest.approx(wanted.recall, abs=2e-3)


def test_nothing_is_done_twice(unbroken, monkeypatch, capsys):
    before = rows(unbroken)
    monkeypatch.setattr(sampling.Samples, "_draw", None)
    monkeypatch.setattr(features, "extract", None)
    job.evaluate(freeze(make_config(**GRID)), unbroken)
    assert rows(unbroken) == before
    assert capsys.readouterr().out.count('"distance"') == 4


def test_killed_at_any_write_it_ends_with_the_same_rows(unbroken, tmp_path, monkeypatch):
    """Every write of a file is once the last thing that a start did."""
    start(tmp_path, make_config(), 10, 20)
    config, written = freeze(make_config(**GRID)), []

    class Killed(BaseException):
        pass

    def dying(write):
        def die(path, data):
            if written and str(path) not in written:
                raise Killed
            write(path, data)
            written.append(str(path))

        return die

    for module in (chunks, references, evaluation_rows):
        monkeypatch.setattr(module, "atomic_write", dying(module.atomic_write))
    starts = 0
    while True:
        written.clear()
        starts += 1
        try:
            job.evaluate(config, tmp_path)
            break
        except Killed:
            # One new file a start, and what was there was not made again.
            assert len(set(written)) == 1
    assert starts > 4 * 6
    assert rows(tmp_path) == rows(unbroken)


@pytest.mark.slow
def test_killed_by_the_system_it_ends_with_the_same_rows(unbroken, tmp_path):
    """kill -9 of real processes at random moments."""
    start(tmp_path, make_config(), 10, 20)
    random.seed(0)
    command = [sys.executable, "-m", "tests.evaluation.toy_run", str(tmp_path)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}

    def files():
        there = tmp_path.rglob("*.npz")
        return {path.relative_to(tmp_path) for path in there if path.parent.name != "checkpoints"}

    for _ in range(10):
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
        time.sleep(random.uniform(2, 12))
        before = files()
        process.send_signal(signal.SIGKILL)
        process.wait()
        # Nothing that was finished is lost.
        assert before <= files()
    subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL)
    assert rows(tmp_path) == rows(unbroken)


@pytest.mark.slow
def test_number_of_processes_does_not_matter(unbroken, tmp_path):
    """Two real processes of two devices each, over loopback."""
    start(tmp_path, make_config(), 10, 20)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    devices = "--xla_force_host_platform_device_count=2"
    env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": devices}
    command = [sys.executable, "-m", "tests.evaluation.toy_run", str(tmp_path), coordinator]
    processes = [
        subprocess.Popen([*command, str(k), "2"], cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
        for k in range(2)
    ]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    assert len(rows(tmp_path)) == 4
    for row, wanted in zip(rows(tmp_path), rows(unbroken), strict=True):
        assert row["values"] == pytest.approx(wanted["values"], rel=1e-6)
    for directory in tmp_path.glob("samples/*/chunks"):
        names = sorted(path.name for path in directory.glob("000000.*"))
        assert names == ["000000.0.npz", "000000.1.npz"]


def test_number_of_devices_does_not_matter(unbroken, tmp_path, monkeypatch):
    start(tmp_path, make_config(), 10, 20)
    make_mesh = sampling.make_mesh
    one = lambda **axes: make_mesh(**axes, devices=jax.devices()[:1])  # noqa: E731
    for module in (sampling, job):
        monkeypatch.setattr(module, "make_mesh", one)
    job.evaluate(freeze(make_config(**GRID)), tmp_path)
    for row, wanted in zip(rows(tmp_path), rows(unbroken), strict=True):
        assert row["values"] == pytest.approx(wanted["values"], rel=1e-6)


def test_settings_share_programs(tmp_path, monkeypatch):
    start(tmp_path, make_config(), 10, 20)
    compiled = []
    program = sampling.Samples._program

    def spy(self, *arguments):
        found = program(self, *arguments)
        compiled.append(len(self._programs))
        return found

    monkeypatch.setattr(sampling.Samples, "_program", spy)
    lists = {"checkpoints": (20, 10), "emas": ("default", "params"), "seeds": (3, 4)}
    job.evaluate(freeze(make_config(**lists, count=8, metrics=(toy_run.PROTOCOL,))), tmp_path)
    assert compiled == [1] * 8
    compiled.clear()
    config = make_config(solvers=("ddim(eta=0.0)", "euler"), steps=(2, 4), count=8)
    job.evaluate(freeze(config), tmp_path)
    assert compiled == [1, 2, 3, 4]
    assert len(rows(tmp_path)) == 12


def test_protocols_of_one_network_share_its_features(unbroken, tmp_path, monkeypatch):
    start(tmp_path, make_config(), 10)
    other = "features(extractor='colours', metrics=(\"vendi(output='embedding')\",))"
    asked = []
    extract = features._extract
    monkeypatch.setattr(features, "_extract", lambda *a: asked.append(a[0].name) or extract(*a))
    job.evaluate(freeze(make_config(metrics=(toy_run.PROTOCOL, other))), tmp_path)
    assert [name.split("-")[0] for name in asked] == ["digits(split='test')", "step10"]
    first, second = rows(tmp_path)
    assert first == rows(unbroken)[0]
    assert 1 <= second["values"]["vendi"] <= 20
    # What looks at samples alone depends on no reference.
    assert second["reference"] == {}


def test_a_checkpoint_that_is_gone_is_not_needed_for_what_is_there(unbroken, tmp_path):
    start(tmp_path, make_config(), 10)
    config = freeze(make_config(checkpoints=(10,)))
    job.evaluate(config, tmp_path)
    (tmp_path / "checkpoints" / "10").rename(tmp_path / "gone")
    (tmp_path / "evaluation" / "features.jsonl").unlink()
    job.evaluate(config, tmp_path)
    assert rows(tmp_path) == rows(unbroken)[:1]
    with pytest.raises(ConfigError, match=r"no checkpoint of step 10 in .*; there are none"):
        job.evaluate(freeze(make_config(checkpoints=(10,), count=60)), tmp_path)


def test_damaged_features_are_made_again(unbroken, tmp_path, caplog):
    start(tmp_path, make_config(), 10)
    job.evaluate(freeze(make_config()), tmp_path)
    (tmp_path / "evaluation" / "features.jsonl").unlink()
    (damaged, *_) = tmp_path.glob("samples/*/features/*/000001.*.npz")
    damaged.write_bytes(damaged.read_bytes()[:100])
    job.evaluate(freeze(make_config()), tmp_path)
    assert rows(tmp_path) == rows(unbroken)[:1]


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        ({"metrics": (toy_run.PROTOCOL.replace("embedding", "pool3"),)}, "'pool3' is none of col"),
        ({"count": 3}, r"precision_recall.* needs at least 4 images, and there are 3 in step10"),
        ({"reference": "no/such.npz"}, r"evaluate.reference = 'no/such.npz': there is no such"),
        ({"reference": "digit"}, r"evaluate.reference = 'digit': no 'digit'; did you mean 'digits"),
        ({"metrics": ("edm",), "weights": "nowhere"}, r"'nowhere': there is no such directory"),
        ({"metrics": ("features(extractor='inceptoin', metrics=('kid',))",)}, "'inception'"),
        ({"metrics": ("features(extractor='colours', metrics=('kidd',))",)}, "'kid'"),
        ({"metrics": ("features(extractor='colours', metrics=())",)}, "empty; name some of cmmd"),
        ({"count": 0, "seeds": (1,)}, r"evaluate.seeds has no effect: .*count = 0 draws no"),
        ({"images": "a.npz", "emas": ("params",)}, r"evaluate.emas has no effect: .*'a.npz'"),
        ({"steps": ("5",)}, r"evaluate.steps = \('5',\): '5' must be a whole number"),
        ({"checkpoints": (10,), "every_checkpoint": True}, "leave one of the two out"),
        ({"solvers": ("dimm",)}, r"config.sample.solver = 'dimm'"),
        ({"emas": ("slow",)}, r"config.sample.ema: 'slow' is not in .*; there are default, params"),
    ],
)
def test_mistakes_are_told_before_anything_is_drawn(tmp_path, evaluate, message):
    start(tmp_path, make_config(), 10)
    with pytest.raises(ConfigError, match=message):
        job.evaluate(freeze(make_config(**evaluate)), tmp_path)
    assert not list(tmp_path.glob("samples/*/chunks/*.npz"))


def test_a_file_of_moments_is_enough_for_a_distance_alone(unbroken, tmp_path):
    start(tmp_path, make_config(), 10)
    source = job._source("digits(split='test')", make_config(), "")
    see = toy_run.colours()
    real = references.compute(references.SourceImages(source, 8, 1), see, tmp_path / "cache")
    moments = real.moments["embedding"]
    np.savez(tmp_path / "moments.npz", mu=moments.mean, sigma=moments.covariance)
    given = {"reference": str(tmp_path / "moments.npz")}
    with pytest.raises(ConfigError, match=r"needs features of embedding, and the reference .*none"):
        job.evaluate(freeze(make_config(**given)), tmp_path)
    only = (toy_run.PROTOCOL.split(', "precision')[0] + ",))",)
    job.evaluate(freeze(make_config(**given, metrics=only)), tmp_path)
    (row,) = rows(tmp_path)
    assert row["values"]["distance"] == pytest.approx(rows(unbroken)[0]["values"]["distance"])


def test_features_that_are_not_finite_are_refused_and_the_samples_stay(tmp_path):
    start(tmp_path, make_config(), 10)
    bad = toy_run.PROTOCOL.replace("'colours'", "'colours(bad=True)'")
    bad = bad.replace("'colours(bad=True)'", '"colours(bad=True)"')
    config = make_config(metrics=(bad,), reference=str(tmp_path / "moments.npz"))
    np.savez(tmp_path / "moments.npz", mu=np.zeros(4), sigma=np.eye(4))
    only = (bad.split(', "precision')[0] + ",))",)
    config.evaluate.metrics = only
    with pytest.raises(ConfigError, match=r"frechet.*generated: row 0 has inf"):
        job.evaluate(freeze(config), tmp_path)
    assert len(list(tmp_path.glob("samples/*/chunks/*.npz"))) == 3


def test_images_made_by_anyone(unbroken, tmp_path):
    row = rows(unbroken)[0]
    images = samples_of(unbroken, row)
    (tmp_path / "png").mkdir()
    for k, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(tmp_path / "png" / f"{k:03d}.png")
    np.savez_compressed(tmp_path / "images.npz", arr_0=images)
    for given in ("png", "images.npz"):
        config = make_config(images=str(tmp_path / given), count=0)
        job.evaluate(freeze(config), tmp_path / "work")
    for found in rows(tmp_path / "work"):
        assert found["values"] == pytest.approx(row["values"], rel=1e-12)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "png" / "zzz.png")
    with pytest.raises(ConfigError, match=r"config.evaluate.images = .*zzz.png: 9 x 9"):
        job.evaluate(freeze(make_config(images=str(tmp_path / "png"), count=0)), tmp_path / "work")
