import csv
import json
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import diffusion
import input_pipeline
from configs import base
from diffusion.likelihood import VLB
from models import Network
from pipelines import likelihood as job
from training.components import ConfigError
from training.workdir import Workdir

PARAMS = {"gain": np.float32(0.3)}
METHOD = "vlb(variance='fixed_large', timesteps=6)"


def network(params, x, time, condition):
    label = condition["label"][:, None, None, None] if condition else 0.0
    return params["gain"] * jnp.tanh(x) + 0.05 * label


def make_task(config):
    return types.SimpleNamespace(
        init=lambda key: PARAMS,
        split=lambda params: (params, {}),
        network=Network(init=lambda key: PARAMS, apply=network),
        schedule=diffusion.SCHEDULES[config.diffusion.schedule](),
        parameterization=diffusion.PARAMETERIZATIONS["x0"](),
        learned_variance=False,
        num_classes=config.model.num_classes,
    )


def make_config(method=METHOD, schedule="linear", **settings):
    config = base.get_config()
    config.model.num_classes = 10
    config.diffusion.schedule = schedule
    # 8 devices share the batch: 6 becomes 8.
    config.likelihood.update({"method": method, "count": 19, "batch_size": 6, **settings})
    return config


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    """A task of one parameter, and a checkpoint of step 70 that needs no files."""

    def restore(directory, name, init, mesh, step, averages):
        assert (name, step) == ("default", -1)
        return PARAMS, 70

    monkeypatch.setattr(job.tasks, "TASKS", {"diffusion": make_task})
    monkeypatch.setattr(job.checkpoints, "restore_for_sampling", restore)


def start(path, config):
    Workdir(path).start(config, [])
    return path


def only(path):
    (out,) = (path / "likelihood").iterdir()
    return out


def info(out):
    return json.loads((out / "info.json").read_text())


def products(out):
    """Whatever does not tell of the time or of how it was made."""
    arrays = np.load(out / "images.npz")
    results = {k: info(out)[k] for k in ("bits_per_dim", "parts", "counts", "count", "likelihood")}
    return results, {k: arrays[k].tolist() for k in arrays}, (out / "terms.csv").read_bytes()


def expected(config, count):
    """Parts of the first images by the method alone, in one batch on one device."""
    source = input_pipeline.SOURCES["digits"](split="test")
    order = source.order(range(count), config.likelihood.seed, True)
    x0 = diffusion.to_model(np.stack([source.images[i] for i in order]))
    labels = jnp.asarray([source.labels[i] for i in order], jnp.int32)
    task, method = make_task(config), VLB("fixed_large", timesteps=6)
    denoiser = diffusion.denoiser(
        lambda *arguments: network(PARAMS, *arguments), task.schedule, task.parameterization
    )
    keys = diffusion.sample_keys(jax.random.key(config.likelihood.seed), jnp.arange(count))
    plan = method.plan(task.schedule, False)
    return method(denoiser, task.schedule, plan, x0, {"label": labels}, keys)


def test_products(tmp_path, capsys):
    config = make_config()
    job.likelihood(config, start(tmp_path, config))
    out, results = only(tmp_path), info(only(tmp_path))
    printed = capsys.readouterr().out
    assert printed == (out / "table.txt").read_text() + f"{out}\n"

    wanted = expected(config, 19)
    bits = sum(np.asarray(part, float) for part in wanted.parts.values())
    assert results["bits_per_dim"]["mean"] == pytest.approx(bits.mean(), rel=1e-5)
    error = bits.std(ddof=1) / np.sqrt(19)
    assert results["bits_per_dim"]["standard_error"] == pytest.approx(error, rel=1e-4)
    assert results["nats_per_dim"]["mean"] == pytest.approx(bits.mean() * np.log(2), rel=1e-5)
    arrays = np.load(out / "images.npz")
    for name, part in wanted.parts.items():
        np.testing.assert_allclose(arrays[f"part/{name}"], part, rtol=1e-4, atol=1e-6)
        assert results["parts"][name]["mean"] == pytest.approx(float(np.mean(part)), rel=1e-4)
        assert f"{name:<16}" in printed
    assert results["counts"] == {"network_calls": {"mean": 6.0, "max": 6.0}}
    assert (results["checkpoint"], results["count"]) == (70, 19)
    assert results["likelihood"]["source"] == "digits(split='test')"
    assert results["provenance"]["devices"]["count"] == 8

    rows = list(csv.DictReader((out / "terms.csv").read_text().splitlines()))
    assert [row["t"] for row in rows] == list("012345")
    for name, values in wanted.terms.items():
        got = [float(row[name]) for row in rows]
        np.testing.assert_allclose(got, np.mean(values, axis=0), rtol=1e-4)
    assert {row["images"] for row in rows} == {"19"}
    assert Image.open(out / "terms.png").size == (1200, 420)


@pytest.mark.parametrize("method", [METHOD, "ode(solver='heun', steps=3)", "vlb(draws=3)"])
def test_neither_batch_size_nor_devices_matter(tmp_path, monkeypatch, method):
    """Beyond rounding: XLA orders the sums of another shape differently."""
    config = make_config(method)
    job.likelihood(config, start(tmp_path / "eight", config))
    make_mesh = job.make_mesh
    monkeypatch.setattr(
        job, "make_mesh", lambda **axes: make_mesh(**axes, devices=jax.devices()[:2])
    )
    config.likelihood.batch_size = 4
    job.likelihood(config, start(tmp_path / "two", config))
    eight, two = (np.load(only(tmp_path / name) / "images.npz") for name in ("eight", "two"))
    assert set(eight) == set(two)
    for name in eight:
        np.testing.assert_allclose(eight[name], two[name], rtol=2e-5, atol=1e-6, err_msg=name)


def test_killed_job_goes_on_and_ends_with_the_same_numbers(tmp_path, monkeypatch):
    config = make_config()
    job.likelihood(config, start(tmp_path / "whole", config))
    start(tmp_path / "killed", config)
    write = job.Chunks.write

    def killed(self, k, *rows, **arrays):
        if k == 1:
            raise KeyboardInterrupt
        write(self, k, *rows, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(job.Chunks, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            job.likelihood(config, tmp_path / "killed")
    assert not (only(tmp_path / "killed") / "info.json").exists()
    job.likelihood(config, tmp_path / "killed")
    assert info(only(tmp_path / "killed"))["made_by_this_start"] == 16
    assert products(only(tmp_path / "killed")) == products(only(tmp_path / "whole"))


def test_what_was_measured_is_not_measured_again(tmp_path, capsys, monkeypatch):
    config = make_config()
    job.likelihood(config, start(tmp_path, config))
    out, before = only(tmp_path), products(only(tmp_path))
    config.likelihood.count = 30
    job.likelihood(config, tmp_path)
    assert info(out)["made_by_this_start"] == 8
    np.testing.assert_array_equal(
        np.load(out / "images.npz")["part/decoder"][:19], before[1]["part/decoder"]
    )
    monkeypatch.setattr(job, "_measure", None)
    config.likelihood.count = 19
    job.likelihood(config, tmp_path)
    assert products(out) == before
    capsys.readouterr()
    job.likelihood(config, tmp_path)
    assert capsys.readouterr().out.startswith("all 19 images are measured already\nbits/dim ")


def test_chunks_of_several_processes_are_put_together(tmp_path):
    config = make_config(count=16, batch_size=8)
    job.likelihood(config, start(tmp_path, config))
    out, before = only(tmp_path), products(only(tmp_path))
    for k in (0, 1):
        whole = out / "chunks" / f"{k:06d}.0.npz"
        arrays = dict(np.load(whole))
        whole.unlink()
        for process, rows in enumerate((slice(4, 8), slice(0, 4))):
            # The second process was killed in the second chunk.
            if (k, process) != (1, 1):
                part = {name: array[rows] for name, array in arrays.items()}
                np.savez(out / "chunks" / f"{k:06d}.{process}.npz", **part)
    (out / "info.json").unlink()
    job.likelihood(config, tmp_path)
    assert info(out)["made_by_this_start"] == 8
    assert products(out) == before


def test_another_question_is_another_directory(tmp_path):
    start(tmp_path, make_config())
    for changes in ({}, {"seed": 1}, {"split": "train"}, {"source": "digits(split='all')"}):
        job.likelihood(make_config(**changes), tmp_path)
    names = sorted(path.name for path in (tmp_path / "likelihood").iterdir())
    assert len(names) == 4
    assert names[0].startswith("step70-default-vlb_variance_fixed_large_timesteps_6-")


def test_continuous_time(tmp_path):
    config = make_config("vdm(draws=4)", "vdm")
    job.likelihood(config, start(tmp_path, config))
    assert set(info(only(tmp_path))["parts"]) == {"prior", "diffusion", "reconstruction"}
    rows = list(csv.DictReader((only(tmp_path) / "terms.csv").read_text().splitlines()))
    logsnr = [float(row["logsnr"]) for row in rows]
    assert len(rows) == 4
    assert logsnr == sorted(logsnr, reverse=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            make_config("vlb", "vdm"),
            r"config.likelihood.method = 'vlb': .*continuous time.*or take vdm",
        ),
        (make_config("vdm"), "config.likelihood.method = 'vdm': .*1000 steps: take vlb"),
        (make_config("vlb(variance='learned_range')"), "this network has no learned variance"),
        (make_config("vlb(decoder='erf')"), "decoder='erf': must be one of 'exact', 'tanh'"),
        (make_config(count=400), r"config.likelihood.count = 400: digits\(split='test'\) has 359"),
        (make_config(split="val"), "config.likelihood.split.*'train', 'test', 'all'"),
        (make_config(source="shapes(size=32)"), "config.likelihood.source = .*36 classes"),
    ],
)
def test_mistakes(tmp_path, config, message):
    start(tmp_path, config)
    with pytest.raises(ConfigError, match=message) as caught:
        job.likelihood(config, tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_images_without_a_number(tmp_path):
    config = make_config("ode(max_steps=2)", count=2)
    with pytest.raises(ConfigError, match=r"2 of 2 images have no finite number.*raise max_steps"):
        job.likelihood(config, start(tmp_path, config))


def test_latents_have_a_density_only(tmp_path):
    config = make_config("vlb")
    config.data.update(field="latent", scale=0.5)
    with pytest.raises(ConfigError, match="is of 8-bit images, and this run is of 'latent'"):
        job.build_method(config)
    config.likelihood.method = "ode(solver='heun', steps=3)"
    method = job.build_method(config)
    assert method.dequantization == "none"
    program = job._program(config, make_task(config), method)
    plan = job.make_plan(method, make_task(config), PARAMS, "")
    latents = jnp.linspace(-2, 2, 2 * 16).reshape(2, 4, 4, 1)
    batch = {"latent": latents, "label": jnp.zeros(2, jnp.int32)}
    half = program(PARAMS, plan, np.uint32(0), jnp.arange(2), batch)
    config.data.scale = 1.0
    batch["latent"] = 0.5 * latents
    program = job._program(config, make_task(config), method)
    whole = program(PARAMS, plan, np.uint32(0), jnp.arange(2), batch)
    # Twice as wide: a bit less density in each dimension.
    totals = (sum(v for k, v in x.items() if k.startswith("part/")) for x in (half, whole))
    np.testing.assert_allclose(next(totals) - next(totals), 1.0, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vlb(draws=20)", "ode(tolerance=1e-3)"])
def test_a_run_from_the_command_line(tmp_path, method):
    """Trained, measured, measured again, and with another batch size: one number."""

    def main(*arguments):
        command = [sys.executable, "main.py", f"--workdir={tmp_path}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        return done.stdout

    main("--config=configs/digits.py:smoke")
    arguments = ["--mode=likelihood", f"--config.likelihood.method={method}"]
    arguments.append("--config.likelihood.count=24")
    first = main(*arguments, "--config.likelihood.batch_size=8")
    again = main(*arguments, "--config.likelihood.batch_size=8")
    assert again == f"all 24 images are measured already\n{first}"
    main(*arguments, "--config.likelihood.batch_size=24")
    eight, all_at_once = (info(out)["bits_per_dim"] for out in (tmp_path / "likelihood").iterdir())
    assert np.isfinite(eight["mean"])
    assert eight["mean"] == pytest.approx(all_at_once["mean"], abs=1e-3)
