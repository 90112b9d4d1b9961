import dataclasses
import logging
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import input_pipeline
from evaluation import image_files, reference_files, references
from evaluation.extractors import Extractor
from evaluation.references import SourceImages, completed, compute
from input_pipeline.images import to_array
from training.mesh import make_mesh

RANDOM = np.random.RandomState(0)
IMAGES = RANDOM.randint(0, 256, (53, 8, 8, 3)).astype(np.uint8)
WEIGHTS = RANDOM.standard_normal((3, 6)).astype(np.float32)
calls = []


def colours(params, images):
    """Mean colours, mixed, and their squares."""
    jax.debug.callback(lambda: calls.append(1))
    mean = jnp.broadcast_to(images.astype(jnp.float32).mean((1, 2)), (len(images), 3)) / 255
    return {"pool3": jnp.matmul(mean, params, precision="highest"), "spatial": mean**2}


EXTRACTOR = Extractor("colours", {"pool3": 6, "spatial": 3}, {"sha256": "ab"}, WEIGHTS, colours)


@pytest.fixture(autouse=True)
def fresh():
    calls.clear()


def made():
    """Calls of the extractor since it was last asked."""
    jax.effects_barrier()
    count = len(calls)
    calls.clear()
    # The callback runs once for each of the devices' programs; here the mesh has one.
    return count


MESH = make_mesh(devices=jax.devices()[:1])


def run(images, cache, extractor=EXTRACTOR, **settings):
    return compute(images, extractor, cache, **{"batch_size": 8, "mesh": MESH} | settings)


@pytest.fixture
def images(tmp_path):
    np.savez_compressed(tmp_path / "images.npz", arr_0=IMAGES)
    return image_files.read(tmp_path / "images.npz")


def by_hand(images):
    mean = images.astype(np.float64).mean((1, 2)) / 255
    return {"pool3": mean @ WEIGHTS.astype(np.float64), "spatial": mean**2}


def check(found, images):
    for name, rows in by_hand(images).items():
        moments = found.moments[name]
        assert moments.count == len(images)
        np.testing.assert_allclose(moments.mean, rows.mean(0), atol=1e-6)
        np.testing.assert_allclose(moments.covariance, np.cov(rows, rowvar=False), atol=1e-6)


def same(a, b):
    assert (a.name, a.identity) == (b.name, b.identity)
    assert a.moments.keys() == b.moments.keys()
    for name in a.moments:
        np.testing.assert_array_equal(a.moments[name].mean, b.moments[name].mean)
        np.testing.assert_array_equal(a.moments[name].covariance, b.moments[name].covariance)
        np.testing.assert_array_equal(a.features[name], b.features[name])


def entry(cache):
    (path,) = cache.glob("*/reference.npz")
    return path


def test_moments_and_features_and_the_cache(images, tmp_path):
    cache = tmp_path / "cache"
    first = run(images, cache)
    assert made() == 7
    check(first, IMAGES)
    for name, rows in by_hand(IMAGES).items():
        np.testing.assert_allclose(first.features[name], rows, atol=1e-6)
        assert first.features[name].dtype == np.float32
    # Moments are those of the float32 features to the digits of float64.
    rows = first.features["pool3"].astype(np.float64)
    covariance = np.cov(rows, rowvar=False)
    np.testing.assert_allclose(first.moments["pool3"].covariance, covariance, atol=1e-14)
    same(run(images, cache), first)
    assert made() == 0
    # Nothing is left of what it was made of.
    assert os.listdir(entry(cache).parent) == ["reference.npz"]
    # The file is one that is read like others' are.
    same(reference_files.read(entry(cache), EXTRACTOR.outputs), first)
    assert first.identity["extractor"] == {"name": "colours", "sha256": "ab"}
    assert first.identity["images"]["count"] == 53


@pytest.mark.parametrize("devices", [3, 8])
def test_devices_share_a_batch(images, tmp_path, devices):
    """A batch of 8 becomes one of 9 over three devices; the padding is in no moment."""
    mesh = make_mesh(devices=jax.devices()[:devices])
    found = run(images, tmp_path / "cache", mesh=mesh)
    check(found, IMAGES)
    np.testing.assert_allclose(found.features["pool3"], by_hand(IMAGES)["pool3"], atol=1e-6)


def test_what_is_another_entry(images, tmp_path):
    cache = tmp_path / "cache"
    run(images, cache)
    changed = IMAGES.copy()
    changed[30, 2, 2, 1] ^= 1
    np.savez(tmp_path / "changed.npz", arr_0=changed)
    source = input_pipeline.SOURCES["digits"]("train")
    for other in (
        lambda: run(image_files.read(tmp_path / "changed.npz"), cache),
        lambda: run(images, cache, dataclasses.replace(EXTRACTOR, identity={"sha256": "cd"})),
        lambda: run(images, cache, outputs=("spatial",)),
        lambda: run(SourceImages(source, 8, 3, 20), cache),
        lambda: run(SourceImages(source, 8, 1, 20), cache),
        lambda: run(SourceImages(source, 8, 3, 21), cache),
        lambda: run(SourceImages(input_pipeline.SOURCES["digits"]("test"), 8, 3, 20), cache),
    ):
        made()
        other()
        assert made() > 0
        other()
        assert made() == 0


def test_the_version_of_the_code_is_in_the_key(images, tmp_path, monkeypatch):
    run(images, tmp_path)
    monkeypatch.setattr(references, "VERSION", references.VERSION + 1)
    made()
    run(images, tmp_path)
    assert made() == 7


@pytest.mark.parametrize("damage", ["cut", "bytes", "empty", "npy", "other"])
def test_a_damaged_entry_is_set_aside(images, tmp_path, caplog, damage):
    cache = tmp_path / "cache"
    first = run(images, cache)
    path = entry(cache)
    whole = path.read_bytes()
    place = whole.index(first.moments["pool3"].covariance.tobytes())
    broken = {
        "cut": whole[: len(whole) // 2],
        "bytes": whole[:place] + bytes(8) + whole[place + 8 :],
        "empty": b"",
        "npy": b"\x93NUMPY",
    }
    if damage == "other":
        references.save(dataclasses.replace(first, identity={}), path)
    else:
        path.write_bytes(broken[damage])
    made()
    with caplog.at_level(logging.WARNING):
        same(run(images, cache), first)
    assert made() == 7
    assert "reference.npz.damaged and computed anew" in caplog.text
    assert sorted(os.listdir(path.parent)) == ["reference.npz", "reference.npz.damaged"]
    same(run(images, cache), first)
    assert made() == 0


def test_a_damaged_shard_is_set_aside(images, tmp_path, caplog, monkeypatch):
    """Three of the seven are there, one of them damaged."""
    cache, error = tmp_path / "cache", RuntimeError("stopped")

    def stop(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(references, "_finish", stop)
        with pytest.raises(RuntimeError, match="stopped"):
            run(images, cache)
    shards = sorted(cache.glob("*/features-8/*.npz"))
    assert len(shards) == made() == 7
    for shard in shards[3:]:
        shard.unlink()
    data = shards[1].read_bytes()
    shards[1].write_bytes(data[:200] + bytes(8) + data[208:])
    with caplog.at_level(logging.WARNING):
        found = run(images, cache)
    assert made() == 5
    assert "renamed to 000001.0.npz.damaged, made again" in caplog.text
    same(found, run(images, tmp_path / "whole"))


def test_kept_rows_are_drawn_from_all(images, tmp_path, monkeypatch):
    monkeypatch.setattr(references, "KEPT", 20)
    found = run(images, tmp_path / "cache")
    check(found, IMAGES)
    all_rows = by_hand(IMAGES)["pool3"]
    rows = found.features["pool3"]
    assert len(rows) == 20
    distance = np.abs(rows[:, None] - all_rows).max(-1)
    assert distance.min(1).max() < 1e-6
    chosen = distance.argmin(1)
    assert len(set(chosen)) == 20
    assert np.ptp(chosen) > 40
    # Rows of one image stay together.
    np.testing.assert_allclose(found.features["spatial"], by_hand(IMAGES)["spatial"][chosen], 1e-5)


def test_a_source_is_seen_as_by_training(tmp_path):
    """In the order of the source, by the crop of the data pipeline, grey as RGB."""
    for k, label in enumerate("ab" * 5):
        path = tmp_path / "folder" / label / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RANDOM.randint(0, 256, (20 + k, 31, 3)).astype(np.uint8)).save(path)
    source = input_pipeline.SOURCES["folder"](str(tmp_path / "folder"))
    expected = np.stack([to_array(source[k]["image"], 8, 3) for k in range(10)])
    images = SourceImages(source, 8, 3)
    np.testing.assert_array_equal(np.concatenate(list(images.chunks(4))), expected)
    check(run(images, tmp_path / "cache"), expected)
    loader = input_pipeline.make_loader(
        source, image_size=8, channels=3, batch_size=10, seed=0, shuffle=False
    )
    np.testing.assert_array_equal(next(loader)["image"], expected)
    loader.close()
    # A part is a random one: a folder is sorted by class.
    part = SourceImages(source, 8, 3, count=6).rows(0, 6)
    order = [int(np.flatnonzero((expected == image).all((1, 2, 3)))[0]) for image in part]
    assert len(set(order)) == 6
    assert order != sorted(order)
    with pytest.raises(ValueError, match=r"count: 11; folder.* has 10 images"):
        SourceImages(source, 8, 3, count=11)


def test_bad_images_of_a_source(tmp_path, caplog):
    for k in range(5):
        Image.fromarray(IMAGES[k]).save(tmp_path / f"{k}.png")
    (tmp_path / "2.png").write_bytes(b"no png")
    source = input_pipeline.SOURCES["folder"](str(tmp_path))
    with pytest.raises(ValueError, match=r"cannot decode .*2\.png"):
        run(SourceImages(source, 8, 3), tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        images = SourceImages(source, 8, 3, on_bad_image="skip").rows(0, 5)
    np.testing.assert_array_equal(images, IMAGES[[0, 1, 3, 3, 4]])
    assert "2.png" in caplog.text


def test_completed(tmp_path):
    """Moments of the file stay; features come from its images."""
    mean, covariance = np.arange(6.0), np.eye(6)
    np.savez(tmp_path / "VIRTUAL.npz", arr_0=IMAGES, mu=mean, sigma=covariance)
    reference = reference_files.read(tmp_path / "VIRTUAL.npz", EXTRACTOR.outputs)
    settings = {"batch_size": 8, "mesh": MESH}
    found = completed(reference, EXTRACTOR, tmp_path / "cache", **settings)
    np.testing.assert_array_equal(found.moments["pool3"].mean, mean)
    assert found.moments.keys() == {"pool3"}
    np.testing.assert_allclose(found.features["pool3"], by_hand(IMAGES)["pool3"], atol=1e-6)
    assert found.identity["sha256"] == reference.identity["sha256"]
    assert found.identity["computed"]["images"]["count"] == 53

    np.savez(tmp_path / "samples.npz", arr_0=IMAGES)
    reference = reference_files.read(tmp_path / "samples.npz", EXTRACTOR.outputs)
    made()
    check(completed(reference, EXTRACTOR, tmp_path / "cache", **settings), IMAGES)
    # The same images, whichever file they lie in.
    assert made() == 0
    np.savez(tmp_path / "edm.npz", mu=mean, sigma=covariance)
    reference = reference_files.read(tmp_path / "edm.npz", EXTRACTOR.outputs)
    assert completed(reference, EXTRACTOR, tmp_path / "cache") is reference


def test_features_that_are_not_finite_are_refused(images, tmp_path):
    def broken(params, pixels):
        found = colours(params, pixels)
        return {**found, "pool3": found["pool3"] / (pixels[:, 0, 0, :1] != IMAGES[20, 0, 0, 0])}

    extractor = dataclasses.replace(EXTRACTOR, apply=broken)
    with pytest.raises(ValueError, match="features pool3 are not finite among images 16 to 23"):
        run(images, tmp_path, extractor)
    np.savez(tmp_path / "one.npz", arr_0=IMAGES[:1])
    with pytest.raises(ValueError, match="1 image; moments need two or more"):
        run(image_files.read(tmp_path / "one.npz"), tmp_path)


# A process that has imported all and forks for each cache that it is told, before JAX has devices.
PROGRAM = """
import os, sys, time
import jax, jax.numpy as jnp, numpy as np
from evaluation import image_files
from evaluation.extractors import Extractor
from evaluation.references import compute

weights = np.random.RandomState(1).standard_normal((192, 32)).astype(np.float32)

def run(cache):
    def note():
        with open(cache + ".log", "a") as file:
            file.write("call\\n")
        time.sleep(0.02)

    def features(params, images):
        jax.debug.callback(note)
        return {"pool3": jnp.tanh(images.reshape(len(images), -1) / 255 @ params)}

    extractor = Extractor("slow", {"pool3": 32}, {}, weights, features)
    compute(image_files.read(sys.argv[1]), extractor, cache, batch_size=1)

for line in sys.stdin:
    pid = os.fork()
    if not pid:
        run(line.strip())
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def test_killed_at_any_moment_it_ends_with_the_same(images, tmp_path):
    """Of 53 batches each is computed once, and at most one more for each kill."""
    program, whole, cache = tmp_path / "program.py", tmp_path / "whole", tmp_path / "killed"
    program.write_text(PROGRAM)
    root = os.fspath(pathlib.Path(__file__).parents[2])
    parent = subprocess.Popen(
        [sys.executable, program, images.name],
        env={**os.environ, "PYTHONPATH": root, "XLA_FLAGS": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def start(path):
        print(path, file=parent.stdin, flush=True)
        return int(parent.stdout.readline())

    def ended():
        return int(parent.stdout.readline())

    def batches(path):
        log = path.with_suffix(".log")
        return log.read_text().count("\n") if log.exists() else 0

    random, killed = np.random.default_rng(), 0
    print("moments of", random.bit_generator.seed_seq.entropy)
    with parent:
        for _ in range(3):
            before, pid = batches(cache), start(cache)
            # So many batches, and then any moment of the next ones.
            wanted, deadline = before + random.integers(1, 12), time.time() + 60
            while batches(cache) < wanted and time.time() < deadline:
                time.sleep(0.002)
            time.sleep(random.uniform(0, 0.05))
            os.kill(pid, signal.SIGKILL)
            assert ended() == -signal.SIGKILL
            killed += 1
            stored = len(list(cache.glob("*/features-1/*.npz")))
            # All that were computed are there, but those that a start was at.
            assert batches(cache) - killed <= stored <= batches(cache)
            assert not list(cache.glob("*/reference.npz"))
        start(cache)
        assert ended() == 0
        start(whole)
        assert ended() == 0
    assert batches(whole) == 53
    assert 53 <= batches(cache) <= 53 + killed
    same(references.load(entry(cache)), references.load(entry(whole)))
    assert entry(cache).read_bytes() == entry(whole).read_bytes()
