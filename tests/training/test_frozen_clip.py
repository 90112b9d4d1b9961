"""Priors on records that embed wrote and with the CLIP itself inside the step: the same runs."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import input_pipeline
from diffusion.solvers import analytic as estimates
from evaluation import job
from input_pipeline.tokenizer import END, START
from pipelines import analytic, quantize
from pipelines.embed import embed
from tests.pipelines.test_embed import Pictures
from tests.pipelines.test_embed import make_config as clip_config
from training import command_line, contract, encoder, loop, quantization
from training import run as runs
from training.components import ConfigError
from training.config import freeze, validate
from training.contract import EmbeddingContract
from training.frozen_clip import Embeddings

TASKS = {
    "smoke": "prior(candidates=1{})",
    "autoregressive_smoke": "autoregressive_prior(fit_count=40{})",
    "linear": "regression_prior(contrastive=0.1{})",
}


@pytest.fixture(scope="module", autouse=True)
def sources():
    patch = pytest.MonkeyPatch()
    pictures = {"pictures": lambda split="train": Pictures(split)}
    patch.setattr("input_pipeline.SOURCES", input_pipeline.SOURCES | pictures)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def clip(sources, one_device, tmp_path_factory):
    """A CLIP of two steps, and the training pictures as it embeds them."""
    path = tmp_path_factory.mktemp("clip")
    loop.train(clip_config(), str(path))
    embed(clip_config(), path)
    return path


def make_config(clip, variant="smoke", frozen=True, **changes):
    """A prior of that CLIP, on records or with it in the step."""
    config = command_line.read(f"configs/prior_paper.py:{variant}")
    argument = f", clip={str(clip)!r}" if frozen else ""
    config.task = TASKS[variant].format(argument)
    config.model.embedding_dim = 8
    if variant != "linear":
        config.model.update(text_dim=16, context_length=16, width=16, depth=1, num_heads=2)
    config.mesh.update(data=-1, fsdp=1)
    config.data.update(image_size=8, channels=1, workers=0)
    if frozen:
        config.data.update(source="pictures(split='train')", context=16)
        config.data.tokenizer = f"file(path='{clip}/tokenizer.json')"
    else:
        config.data.source = f"records(path='{clip}/embeddings')"
    if "components" in config.model:
        config.model.update(components=4, buckets=8)
    config.train.update(steps=4, batch_size=8)
    config.optimizer.update(warmup_steps=0, learning_rate=1e-2)
    config.checkpoint.every = 4
    config.log.update(every=1, preview_every=0, preview_count=8, tensorboard=False)
    config.sample.steps = 2
    config.evaluate.metrics = ("prior_quality(split='train', count=40, seeds=1)",)
    for name, value in changes.items():
        section, field = name.split("__")
        config[section][field] = value
    validate(config)
    return freeze(config)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(clip, tmp_path_factory):
    """Runs of the diffusion prior: (on records, with CLIP in the step)."""
    paths = []
    for frozen in (False, True):
        paths.append(tmp_path_factory.mktemp("prior"))
        loop.train(make_config(clip, frozen=frozen, log__preview_every=4), str(paths[-1]))
    return paths


def test_both_ways_train_the_same_prior(clip, trained):
    stored, frozen = (lines(path / "metrics.jsonl") for path in trained)
    assert [line["step"] for line in stored] == [1, 2, 3, 4]
    for one, other in zip(stored, frozen, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    assert stored[0]["loss"] != stored[3]["loss"]
    for path in trained:
        assert EmbeddingContract.read(path) == EmbeddingContract.read(clip)
        assert list((path / "previews").glob("*.png"))


def test_the_step_reads_images_and_stores_no_clip(clip, trained):
    run = runs.build(make_config(clip))
    assert {name: str(spec.dtype) for name, spec in run.batch_spec.items()} == {
        "image": "uint8",
        "tokens": "int32",
    }
    assert set(run.abstract_state.frozen) == {"clip"}
    stored = next((trained[1] / "checkpoints" / "4").glob("training*"))
    assert "patches" not in "".join(
        file.read_text(errors="ignore") for file in stored.rglob("*") if file.is_file()
    )


def test_both_ways_are_measured_alike(clip, trained, capsys):
    values = []
    for frozen, path in zip((False, True), trained, strict=True):
        job.evaluate(make_config(clip, frozen=frozen), path)
        values.append(lines(path / "evaluation" / "prior_quality.jsonl")[-1]["values"])
    assert values[0]["count"] == values[1]["count"] == 40
    for name in ("cosine", "cosine_to_text", "text_cosine"):
        assert values[0][name] == pytest.approx(values[1][name], abs=1e-4)


@pytest.mark.parametrize("variant", ["autoregressive_smoke", "linear"])
def test_other_priors_train_the_same_loss(clip, variant):
    """The quantizer is fitted on the same embeddings; the state comes back without CLIP."""
    loss = {}
    for frozen in (False, True):
        config = make_config(clip, variant, frozen)
        run = runs.build(config)
        source = loop.make_source(config)
        tokenizer = encoder.load(clip).tokenizer
        loader = loop.make_loader(config, source, run.batch_spec, tokenizer)
        state = run.init_state()
        for _ in range(3):
            batch = jax.device_put(next(loader), run.batch_sharding())
            state = run.train_step(state, batch)
            loss.setdefault(frozen, []).append(float(state.metrics["loss"]))
        loader.close()
        assert state.task == {}
    np.testing.assert_allclose(loss[True], loss[False], rtol=1e-5)
    assert len(set(loss[True])) == 3


def test_what_the_fields_are(clip):
    """Of `fill`, `read` and the records: the same; nothing passes a gradient to CLIP."""
    shapes = {
        "image_embedding": (8,),
        "text_embedding": (8,),
        "text_features": (16, 16),
        "text_mask": (16,),
        "tokens": (16,),
    }
    config = make_config(clip)
    frozen = Embeddings(config, str(clip), shapes)
    stored = Embeddings(make_config(clip, frozen=False), "", shapes)
    assert stored.teachers == {}
    assert {name: spec.shape for name, spec in stored.spec(3).items()} == {
        name: (3, *shape) for name, shape in shapes.items()
    }
    expected, read = stored.read(200), frozen.read(200)
    ids = expected["tokens"]
    examples = [Pictures("train").example(k, ()) for k in range(40)]
    batch = {"image": np.stack([each["image"] for each in examples]), "tokens": ids}
    params = encoder.load(clip).params
    state = {"clip": params, "own": np.zeros(2)}
    filled, rest = jax.jit(frozen.fill)(batch, state)
    assert set(rest) == {"own"}
    assert set(filled) == {*shapes, "image"}
    beside = frozen.read(40, fields=("image", "label", "text_mask"))
    np.testing.assert_array_equal(beside["image"], batch["image"])
    np.testing.assert_array_equal(beside["label"], [each["label"] for each in examples])
    np.testing.assert_array_equal(beside["text_mask"], expected["text_mask"])
    for name in shapes:
        assert len(expected[name]) == 40
        assert expected[name].dtype == read[name].dtype == stored.spec(1)[name].dtype
        np.testing.assert_allclose(read[name], expected[name], atol=1e-6)
        np.testing.assert_allclose(filled[name], expected[name], atol=1e-6)
    # The mask ends with the first end token.
    tokenizer = encoder.load(clip).tokenizer
    for row, mask in zip(ids, expected["text_mask"], strict=True):
        assert mask.dtype == bool
        length = int(mask.sum())
        assert mask[:length].all()
        assert list(row).index(tokenizer.end) == length - 1

    def total(params):
        made, _ = frozen.fill(batch, {"clip": params})
        return sum(made[name].sum() for name in ("image_embedding", "text_features"))

    for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(params)):
        assert not np.any(leaf)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__tokenizer": "bpe(vocab_size=300)"}, r"not CLIP's own; take \"file\(path='.*json'"),
        ({"data__tokenizer": ""}, r"config\.data\.tokenizer = '' is not CLIP's own"),
        ({"data__image_size": 16}, r"config\.data\.image_size is 8 there and 16 here"),
        ({"data__channels": 3}, r"config\.data\.channels is 1 there and 3 here"),
        ({"data__context": 12}, r"config\.data\.context is 16 there and 12 here"),
        ({"model__text_dim": 32}, r"text_features has shape \[16, 16\], and .* for \[16, 32\]"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_compiled(clip, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        runs.build(make_config(clip, **changes))
    assert "\n" not in str(caught.value)


def test_another_tokenizer_file_is_refused(clip, tmp_path):
    text = (clip / "tokenizer.json").read_text().replace('"Lowercase"', '"NFKC"')
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ConfigError, match="is not CLIP's own"):
        runs.build(make_config(clip, data__tokenizer=f"file(path='{tmp_path}/tokenizer.json')"))


def test_only_a_trained_clip_will_do(clip, trained, tmp_path):
    with pytest.raises(ConfigError, match=r"clip='.*nowhere'.*has no config\.json"):
        runs.build(make_config(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"is a run of task .*; name one of task 'clip'"):
        runs.build(make_config(trained[0], data__tokenizer=""))
    bare = shutil.copytree(clip, tmp_path / "bare", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(ConfigError, match="no complete checkpoint"):
        runs.build(make_config(bare))


def test_a_run_keeps_its_contract(clip, trained, tmp_path):
    """Neither way goes on with embeddings of another CLIP, nor is it measured on them."""
    run = shutil.copytree(trained[1], tmp_path / "run")
    kept = EmbeddingContract.read(run)
    dataclasses.replace(kept, encoder="0" * 16).write(run)
    for job_of in (loop.train, job.evaluate):
        with pytest.raises(ConfigError, match="cannot go together, different are encoder"):
            job_of(make_config(clip), str(run))


def test_a_clip_without_a_contract_is_measured(clip, tmp_path):
    copy = shutil.copytree(clip, tmp_path / "clip")
    (copy / "contract.json").unlink()
    loop.train(make_config(copy, train__steps=1), str(tmp_path / "run"))
    assert EmbeddingContract.read(copy) == EmbeddingContract.read(clip)
    assert EmbeddingContract.read(tmp_path / "run") == EmbeddingContract.read(clip)


def test_a_clip_that_was_trained_on_is_refused(clip, tmp_path):
    copy = shutil.copytree(clip, tmp_path / "clip")
    config = ConfigDict(clip_config())
    config.train.steps = 3
    loop.train(freeze(config), str(copy))
    run = runs.build(make_config(copy))
    with pytest.raises(ConfigError, match="trained on since"):
        run.frozen()
    with pytest.raises(ConfigError, match="trained on since"):
        run.task.embeddings.read(8)
    # Nor does embed put the new embeddings beside the old ones.
    config.embed.split = "more"
    with pytest.raises(ConfigError, match=r"remove it to embed anew.*different are encoder"):
        embed(freeze(config), copy)
    # After that the contract is the new one, and a new run may start.
    run = runs.build(make_config(copy))
    run.frozen()


def test_numbers_of_a_prior_are_taken_with_its_clip(clip, trained, tmp_path, capsys):
    """--mode=estimate and --mode=quantize embed what they read, by a CLIP that is checked."""
    run = shutil.copytree(trained[1], tmp_path / "run")
    analytic.estimate(make_config(clip), run)
    found = estimates.load(run / analytic.FILE)
    analytic.estimate(make_config(clip, frozen=False), shutil.copytree(trained[0], tmp_path / "r"))
    other = estimates.load(tmp_path / "r" / analytic.FILE)
    np.testing.assert_allclose(found.eps_square, other.eps_square, rtol=1e-3)
    quantize.quantize(make_config(clip, "autoregressive_smoke"), tmp_path)
    assert quantization.load(tmp_path / quantize.FILE).basis.shape == (8, 4)
    with pytest.raises(ConfigError, match=r"config\.data\.image_size is 8 there and 16 here"):
        quantize.quantize(make_config(clip, "autoregressive_smoke", data__image_size=16), tmp_path)


def test_a_clip_of_a_published_tokenizer(clip, tmp_path):
    """Its own start and end tokens go with the file that is asked for."""
    config = ConfigDict(clip_config())
    stored = json.loads((clip / "tokenizer.json").read_text())
    text = json.dumps(stored).replace(START, "<s>").replace(END, "</s>")
    (tmp_path / "published.json").write_text(text)
    ends = "start='<s>', end='</s>'"
    config.data.tokenizer = f"file(path='{tmp_path}/published.json', {ends})"
    config.train.steps = 1
    loop.train(freeze(config), str(tmp_path / "clip"))
    path = f"{tmp_path}/clip/tokenizer.json"
    with pytest.raises(ConfigError) as caught:
        runs.build(make_config(tmp_path / "clip", data__tokenizer=""))
    wanted = str(caught.value).partition("take ")[2].strip('"')
    assert wanted == f"file(path={path!r}, {ends})"
    runs.build(make_config(tmp_path / "clip", data__tokenizer=wanted))


def test_each_module_can_be_imported_first():
    """Tasks have teachers and encoders, which are runs of tasks."""
    modules = ("training.frozen_clip", "training.encoder", "training.teacher")
    # What they have in common is imported once, and nothing of this project.
    each = """if True:
        import importlib, os, sys, flax, grain, jax, optax, orbax.checkpoint, scipy
        for name in sys.argv[1:]:
            child = os.fork()
            if not child:
                importlib.import_module(name)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0, name
    """
    assert subprocess.run([sys.executable, "-c", each, *modules]).returncode == 0


def test_the_contract_of_records(clip, tmp_path):
    there = f"records(path='{clip}/embeddings', split='train')"
    found = EmbeddingContract.read(clip)
    assert contract.of_source(there) == found
    assert contract.of_source("gaussian_pairs(dim=4)") is None
    assert contract.of_source(f"records(path='{tmp_path}')") is None
    dataclasses.replace(found, scale=2.0).write(tmp_path)
    mixed = f"mixture(sources=({there}, records(path='{tmp_path}')), weights=(1, 1))"
    with pytest.raises(ConfigError, match="different are scale"):
        contract.of_source(mixed)
