import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import diffusion
from configs import base
from diffusion.pixels import to_uint8
from models import Network
from pipelines import pictures, sampling
from training import companions, guidance
from training.components import ConfigError
from training.sampler import build_sampler
from training.workdir import Workdir

PARAMS = {"shift": np.float32(0.3)}


def network(params, x, time, condition):
    label = condition["label"][:, None, None, None] if condition else 0.0
    return 0.6 * jnp.tanh(x) + params["shift"] + 0.1 * label


def make_task(config):
    return types.SimpleNamespace(
        init=lambda key: PARAMS,
        split=lambda params: (params, {}),
        network=Network(init=lambda key: PARAMS, apply=network),
        schedule=diffusion.SCHEDULES["linear"](),
        parameterization=diffusion.PARAMETERIZATIONS["x0"](),
        learned_variance=False,
        image_shape=(4, 4, 1),
        num_classes=config.model.num_classes,
        null=None,
    )


def make_config(classes=3, **sample):
    config = base.get_config()
    config.model.num_classes = classes
    # 8 devices share the batch: 6 becomes 8.
    config.sample.update({"steps": 3, "count": 11, "batch_size": 6, **sample})
    return config


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    """A task of one parameter, and a checkpoint of step 70 that needs no files."""

    def restore(directory, name, init, mesh, step, averages):
        assert (name, step) == ("default", 70)
        return PARAMS, step

    monkeypatch.setattr(sampling.tasks, "TASKS", {"diffusion": make_task})
    monkeypatch.setattr(sampling.checkpoints, "steps", lambda directory: [70])
    monkeypatch.setattr(sampling.checkpoints, "restore_for_sampling", restore)


def start(path, config):
    Workdir(path).start(config, [])
    return path


def only(path):
    (out,) = (path / "samples").iterdir()
    return out


def files(out):
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "info.json"
    }


def made(out):
    return json.loads((out / "info.json").read_text())["made_by_this_start"]


def test_products(tmp_path, capsys):
    config = make_config()
    sampling.sample(config, start(tmp_path, config))
    out = only(tmp_path)
    assert capsys.readouterr().out == f"{out / 'grid.png'}\n"

    indices = np.arange(16)
    images = build_sampler(config, make_task(config))(
        PARAMS, jax.random.key(0), indices, indices % 3
    )
    expected = np.asarray(to_uint8(images))[:11]
    samples = np.load(out / "samples.npz")
    assert set(samples) == {"arr_0", "arr_1"}
    np.testing.assert_array_equal(samples["arr_0"], expected)
    np.testing.assert_array_equal(samples["arr_1"], indices[:11] % 3)
    pictures = sorted(out.glob("0*.png"))
    assert [path.name for path in pictures] == [f"{i:06d}.png" for i in range(11)]
    np.testing.assert_array_equal(np.stack([Image.open(p) for p in pictures]), expected[..., 0])

    info = json.loads((out / "info.json").read_text())
    assert info["checkpoint"] == 70
    assert info["count"] == 11
    assert info["network_calls_per_image"] == 3
    assert info["sample"]["solver"] == config.sample.solver
    assert info["provenance"]["devices"]["count"] == 8
    assert info["images_per_second"] > 0


def test_name_says_the_sampler(tmp_path):
    config = make_config(solver="ddim(eta=0.5)", seed=4)
    sampling.sample(config, start(tmp_path, config))
    name, digest = only(tmp_path).name.rsplit("-", 1)
    assert name == "step70-default-ddim_eta_0.5-respaced-3steps-unguided-seed4"
    assert len(digest) == 8


def test_unconditional_samples_have_no_labels(tmp_path):
    config = make_config(classes=0)
    sampling.sample(config, start(tmp_path, config))
    assert set(np.load(only(tmp_path) / "samples.npz")) == {"arr_0"}


def test_killed_job_goes_on_and_ends_with_the_same_files(tmp_path, monkeypatch):
    config = make_config(count=30)
    sampling.sample(config, start(tmp_path / "whole", config))

    start(tmp_path / "killed", config)
    write = sampling.Chunks.write

    def killed(self, k, *rows, **arrays):
        if k == 2:
            raise KeyboardInterrupt
        write(self, k, *rows, **arrays)

    for where, name, replacement in (
        (sampling.Chunks, "write", killed),
        (pictures, "grid", lambda *_, **__: killed(None, 2)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, replacement)
            with pytest.raises(KeyboardInterrupt):
                sampling.sample(config, tmp_path / "killed")
    assert not (only(tmp_path / "killed") / "info.json").exists()
    sampling.sample(config, tmp_path / "killed")
    assert made(only(tmp_path / "killed")) == 0
    assert files(only(tmp_path / "killed")) == files(only(tmp_path / "whole"))


def test_what_was_made_is_not_made_again(tmp_path, capsys, monkeypatch):
    config = make_config(count=11)
    sampling.sample(config, start(tmp_path, config))
    out, before = only(tmp_path), files(only(tmp_path))

    config.sample.count = 30
    sampling.sample(config, tmp_path)
    assert made(out) == 16
    assert files(out).items() >= {k: v for k, v in before.items() if k[0] == "0"}.items()
    assert len(np.load(out / "samples.npz")["arr_0"]) == 30

    monkeypatch.setattr(sampling.Samples, "_draw", None)
    config.sample.count = 11
    sampling.sample(config, tmp_path)
    assert {k: v for k, v in files(out).items() if "chunks" not in k} == {
        k: v for k, v in before.items() if "chunks" not in k
    }
    capsys.readouterr()
    sampling.sample(config, tmp_path)
    assert capsys.readouterr().out == f"all 11 samples are there already: {out / 'grid.png'}\n"


def test_another_sampler_is_another_directory(tmp_path):
    start(tmp_path, make_config())
    for changes in ({}, {"seed": 1}, {"labels": "1"}, {"clip": "none"}, {"batch_size": 16}):
        sampling.sample(make_config(**changes), tmp_path)
    assert len(list((tmp_path / "samples").iterdir())) == 5


def test_other_networks_of_guidances_are_part_of_the_identity(tmp_path, monkeypatch):
    config = make_config(guidance=("autoguidance(scale=2.0, ema='slow')",))
    start(tmp_path, config)
    for step in (10, 20):
        weak = companions.Companion(
            task=make_task(config),
            params={"shift": np.float32(step / 100)},
            bind=lambda params: guidance.denoiser_of(make_task(config), params),
            identity={"checkpoint": step},
        )
        monkeypatch.setattr(sampling.companions, "restore", lambda *_, weak=weak: (weak,))
        sampling.sample(config, tmp_path)
    infos = [json.loads(p.read_text()) for p in sorted(tmp_path.glob("samples/*/info.json"))]
    assert sorted(info["companions"][0]["checkpoint"] for info in infos) == [10, 20]
    assert {info["network_calls_per_image"] for info in infos} == {6}
    images = [np.load(p)["arr_0"] for p in tmp_path.glob("samples/*/samples.npz")]
    assert not np.array_equal(*images)
    assert all("autoguidance_scale2.0_emaslow" in p.name for p in tmp_path.glob("samples/*"))


def test_a_classifier_has_no_samples(tmp_path):
    config = make_config()
    config.task = "classifier"
    with pytest.raises(ConfigError, match="has no samples; name this run in config"):
        sampling.sample(config, start(tmp_path, config))


def test_number_of_devices_does_not_matter(tmp_path, monkeypatch):
    config = make_config()
    sampling.sample(config, start(tmp_path / "eight", config))
    make_mesh = sampling.make_mesh
    monkeypatch.setattr(
        sampling, "make_mesh", lambda **axes: make_mesh(**axes, devices=jax.devices()[:2])
    )
    config.sample.batch_size = 8
    sampling.sample(config, start(tmp_path / "two", config))
    assert files(only(tmp_path / "two")) == files(only(tmp_path / "eight"))


def test_chunks_of_several_processes_are_put_together(tmp_path, monkeypatch):
    """Two processes, each with half of a chunk, of which one was killed in the second chunk."""
    config = make_config(count=16, batch_size=8)
    sampling.sample(config, start(tmp_path, config))
    out, before = only(tmp_path), files(only(tmp_path))
    for k in (0, 1):
        whole = out / "chunks" / f"{k:06d}.0.npz"
        arrays = dict(np.load(whole))
        whole.unlink()
        for process, rows in enumerate((slice(4, 8), slice(0, 4))):
            if (k, process) != (1, 1):
                part = {name: array[rows] for name, array in arrays.items()}
                np.savez(out / "chunks" / f"{k:06d}.{process}.npz", **part)
    (out / "info.json").unlink()
    sampling.sample(config, tmp_path)
    assert made(out) == 8
    assert files(out)["samples.npz"] == before["samples.npz"]


def test_config_of_another_model_is_refused(tmp_path):
    start(tmp_path, make_config())
    config = make_config()
    config.model.dtype = "bfloat16"
    sampling.sample(config, tmp_path)
    config.diffusion.schedule = "cosine"
    with pytest.raises(ConfigError, match=r"config.diffusion.schedule = 'cosine', but .*'linear"):
        sampling.sample(config, tmp_path)


def test_directory_without_a_run(tmp_path):
    with pytest.raises(ConfigError, match="no run was started there"):
        sampling.sample(make_config(), tmp_path)
