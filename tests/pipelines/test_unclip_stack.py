"""The stages of unCLIP as one: trained in order, resumed, asked, measured, refused."""

import contextlib
import json
import logging
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import evaluation.stack
from diffusion.solvers import analytic as estimates
from evaluation.caption_accuracy import caption_accuracy
from pipelines import analytic, generate
from pipelines import stack as stacks
from pipelines.text_to_image import TextToImage
from tests.pipelines.tiny_stack import CAPTION, SOURCE, tiny
from training import loop, mesh, stack, tasks, tokens
from training.components import ConfigError
from training.config import check_resumable, freeze
from training.contract import EmbeddingContract
from training.workdir import Workdir


@pytest.fixture(scope="module")
def trained(tmp_path_factory, one_device):
    """(config, root) of a stack whose stages are all trained."""
    root = tmp_path_factory.mktemp("stack")
    config = tiny()
    stacks.train(freeze(config), root)
    return config, root


def files(root):
    """Checkpoints of each stage, and what it was logged."""
    return {
        str(path.relative_to(root)): path.stat().st_mtime_ns
        for path in root.glob("*/checkpoints/*/_CHECKPOINT_METADATA")
    }


def test_every_stage_has_a_run_of_its_own_and_what_is_done_is_left(trained, capsys):
    config, root = trained
    before = files(root)
    assert {name.split("/")[0] for name in before} == set(config.order)
    stacks.train(freeze(config), root)
    told = capsys.readouterr().err
    assert told.count("done already") == 4
    assert "stage 2 of 4: prior" in told
    assert files(root) == before


def test_a_half_done_stage_goes_on_and_only_it(trained, tmp_path, caplog):
    config, root = trained
    copy = shutil.copytree(root, tmp_path / "stack")
    shutil.rmtree(copy / "prior" / "checkpoints" / "4")
    # A work directory may be moved or copied.
    assert not [path for path in copy.glob("*/config.json") if str(root) in path.read_text()]
    config = config.copy_and_resolve_references()
    config.only = "prior"
    with caplog.at_level(logging.INFO):
        stacks.train(freeze(config), copy)
    assert "resuming from the checkpoint of step 2" in caplog.text
    assert (copy / "prior/checkpoints/4").exists()
    lines = (copy / "prior" / "metrics.jsonl").read_text()
    assert lines == (root / "prior" / "metrics.jsonl").read_text()


def test_a_stage_that_points_elsewhere_is_refused(trained, tmp_path):
    config, root = trained
    copy = shutil.copytree(root, tmp_path / "stack")
    record = copy / "prior" / "config.json"
    record.write_text(record.read_text().replace("{root}", "/elsewhere"))
    before = record.read_text()
    message = r"config.stages.prior.data.source: .*/elsewhere/clip.* -> .*/stack/clip/embeddings"
    with pytest.raises(ConfigError, match=message):
        stacks.train(freeze(config), copy)
    assert record.read_text() == before


def test_the_directory_of_another_run_is_left_as_it_is(trained, tmp_path):
    config, root = trained
    record = tmp_path / "config.json"
    shutil.copy(root / "upsampler" / "config.json", record)
    before = record.read_text()
    with pytest.raises(ConfigError, match=r"holds a run of task .super_resolution.*another --work"):
        stacks.train(freeze(config), tmp_path)
    assert record.read_text() == before
    # And a single run in the root of a stack.
    with pytest.raises(ConfigError, match=r"holds a stack of clip, prior, decoder, upsampler"):
        check_resumable(Workdir(root).read_config(), config.stages.upsampler)


def test_a_stack_without_a_stage_that_is_there_is_refused(trained, tmp_path):
    config, root = trained
    shutil.copytree(root, tmp_path / "stack")
    fewer = config.copy_and_resolve_references()
    fewer.order = ("clip", "prior", "decoder")
    del fewer.stages["upsampler"]
    fewer.generate.upsamplers = ()
    with pytest.raises(ConfigError, match="holds stages that this config has not: upsampler"):
        stacks.train(freeze(fewer), tmp_path / "stack")


def test_a_clip_that_went_on_is_refused(trained, tmp_path):
    config, root = trained
    copy = shutil.copytree(root, tmp_path / "stack")
    own = json.loads((copy / "clip" / "contract.json").read_text())["encoder"]
    for path in copy.glob("*/contract.json"):
        path.write_text(path.read_text().replace(own, "0123456789abcdef"))
    with pytest.raises(ConfigError, match=f"of encoder 0123456789abcdef.* of step 4 is {own}"):
        TextToImage(freeze(config), copy)


@pytest.fixture
def clip_alone(trained, tmp_path):
    """(config that trains the prior, root) where CLIP is trained and nothing is embedded."""
    config, root = trained
    shutil.copytree(root / "clip", tmp_path / "clip", ignore=lambda *_: ["embeddings"])
    config = config.copy_and_resolve_references()
    config.update(only="prior", splits=("compositional",))
    return config, tmp_path


def test_a_stage_alone_has_what_it_learns_from_written_and_checked(clip_alone, monkeypatch):
    config, root = clip_alone
    begun = []
    monkeypatch.setattr(stacks, "_train", lambda stage, workdir: begun.append(workdir.path.name))
    stacks.train(freeze(config), root)
    assert begun == ["prior"]
    assert (root / "clip" / "embeddings" / "compositional" / "info.json").exists()
    # What is there is of other pairs.
    config.pairs = SOURCE.replace("objects=1", "objects=2")
    with pytest.raises(ConfigError, match=r"config\.pairs = .*holds other records"):
        stacks.train(freeze(config), root)
    assert begun == ["prior"]


def test_another_config_of_a_trained_stage_is_refused_before_anything_is_trained(trained):
    config, root = trained
    changed = config.copy_and_resolve_references()
    changed.stages.decoder.model.hidden_size = 16
    message = r"decoder: .*\n.*config.stages.decoder.model.hidden_size: 8 -> 16"
    with pytest.raises(ConfigError, match=message):
        stacks.train(freeze(changed), root)


def test_records_and_the_frozen_clip_give_the_decoder_the_same_loss(trained, tmp_path):
    config, root = trained
    losses = {}
    for embeddings in ("records", "step"):
        config = config.copy_and_resolve_references()
        config.embeddings = embeddings
        stage = freeze(stack.stages(config, root)["decoder"])
        task, source = tasks.make_task(stage), loop.make_source(stage)
        spec = task.batch_spec(stage.train.batch_size)
        workdir = Workdir(tmp_path / embeddings)
        tokenizer = tokens.prepare(stage, source, workdir) if embeddings == "step" else None
        with contextlib.closing(loop.make_loader(stage, source, spec, tokenizer)) as loader:
            batch = next(loader)
        assert ("image_embedding" in spec) == (embeddings == "records")
        devices = mesh.make_mesh()
        frozen = {key: teacher.load(devices) for key, teacher in task.teachers.items()}
        params = task.init(jax.random.key(0))
        loss = jax.jit(task.loss)(params, task.init_state() | frozen, batch, jax.random.key(1))[0]
        losses[embeddings] = float(loss)
    assert losses["step"] == pytest.approx(losses["records"], rel=1e-5)


@pytest.fixture(scope="module")
def asked(trained):
    """(config, root, directory) of pictures of two prompts."""
    config, root = trained
    config = config.copy_and_resolve_references()
    config.generate.update(prompts=(CAPTION, "two elephants, ödd ☃ words"), count=5)
    generate.generate(freeze(config), root)
    (out,) = (root / "generated").iterdir()
    return config, root, out


def test_pictures_of_prompts_are_stored_with_their_captions(asked):
    config, _, out = asked
    images = np.load(out / "samples.npz")["arr_0"]
    assert images.shape == (10, 32, 32, 3)
    assert images.dtype == np.uint8
    assert np.array_equal(np.asarray(Image.open(out / "000003.png")), images[3])
    info = json.loads((out / "info.json").read_text())
    assert info["captions"] == [p for p in config.generate.prompts for _ in range(5)]
    assert info["stages"]["prior"]["checkpoint"] == 4
    plain = np.asarray(Image.open(out / "grid.png"))
    assert plain.shape[0] > 2 * (64 + 2) + 2, "there is room for captions"


def test_a_picture_depends_on_its_prompt_number_and_seed_alone(asked, trained):
    config, root, out = asked
    images = np.load(out / "samples.npz")["arr_0"]
    pipeline = TextToImage(freeze(config), root)
    captions = ["a large blue star on a black background"] * 8
    captions[6] = CAPTION
    numbers = np.int32([9, 9, 9, 9, 9, 9, 1, 0])
    again = np.asarray(pipeline(captions, 0, numbers))
    assert np.array_equal(again[6], images[1])
    other = np.asarray(pipeline(captions, 1, numbers))
    assert not np.array_equal(other[6], images[1])


def test_a_killed_job_goes_on_at_the_missing_chunk(asked, capsys):
    config, root, out = asked
    images = (out / "samples.npz").read_bytes()
    (out / "info.json").unlink()
    (out / "chunks" / "000001.0.npz").unlink()
    kept = (out / "chunks" / "000000.0.npz").stat().st_mtime_ns
    generate.generate(freeze(config), root)
    assert (out / "samples.npz").read_bytes() == images
    assert (out / "chunks" / "000000.0.npz").stat().st_mtime_ns == kept
    assert json.loads((out / "info.json").read_text())["made_by_this_start"] == 2


def test_long_and_empty_prompts(asked, caplog):
    config, root, _ = asked
    pipeline = TextToImage(freeze(config), root)
    # Words that no caption had are told apart by their pieces, and not warned of.
    prompts = [CAPTION, "a zorgle", "a ☃"]
    with caplog.at_level(logging.WARNING, "pipelines"):
        pipeline.check_prompts(prompts)
    assert not caplog.records
    assert len(np.unique(pipeline.clip.captions(prompts), axis=0)) == 3
    with caplog.at_level(logging.WARNING, "pipelines"):
        pipeline.check_prompts([CAPTION + " below a large yellow star and nine more words"])
    (record,) = caplog.records
    assert "longer than the 16 tokens" in record.getMessage()
    assert "more words" in record.getMessage()
    with pytest.raises(ConfigError, match=r"a prompt is empty"):
        pipeline.check_prompts(["  "])
    config = config.copy_and_resolve_references()
    config.generate.prompts = ()
    with pytest.raises(ConfigError, match=r"config.generate.prompts: empty.*--prompt="):
        generate.generate(freeze(config), root)


def test_a_missing_stage_is_named(trained, tmp_path):
    config, root = trained
    shutil.copytree(root / "clip", tmp_path / "clip")
    with pytest.raises(ConfigError, match=r"config.stages.prior: is not trained.*--config.only"):
        TextToImage(freeze(config), tmp_path)


def test_stages_of_two_clips_are_refused_in_one_line(trained, tmp_path):
    config, root = trained
    copy = shutil.copytree(root, tmp_path / "stack")
    contract = EmbeddingContract.read(copy / "prior")
    other = contract.__class__(**{**contract.__dict__, "encoder": "0123456789abcdef"})
    other.write(copy / "prior")
    with pytest.raises(ConfigError) as refused:
        TextToImage(freeze(config), copy)
    message = str(refused.value)
    assert "\n" not in message
    assert "0123456789abcdef" in message
    assert contract.encoder in message


def test_stages_in_the_wrong_place_or_of_the_wrong_size_are_refused(trained):
    config, root = trained
    wrong = config.copy_and_resolve_references()
    wrong.generate.prior = "decoder"
    with pytest.raises(ConfigError, match=r"'decoder' is of task 'decoder.*a prior is needed"):
        TextToImage(freeze(wrong), root)
    twice = config.copy_and_resolve_references()
    twice.generate.upsamplers = ("upsampler", "upsampler")
    with pytest.raises(ConfigError, match=r"'upsampler' enlarges images of 16 px.*have 32 px"):
        TextToImage(freeze(twice), root)


def test_without_a_prior_the_decoder_is_given_the_text_embedding(trained):
    config, root = trained
    config = config.copy_and_resolve_references()
    config.generate.prior = ""
    pipeline = TextToImage(freeze(config), root)
    captions, numbers = [CAPTION] * 8, np.arange(8, dtype=np.int32)
    embedding = np.asarray(pipeline.embed(captions, 0, numbers))
    np.testing.assert_allclose(embedding, pipeline.clip.captions(captions), atol=1e-6)
    assert pipeline(captions, 0, numbers).shape == (8, 32, 32, 3)


def test_caption_accuracy_is_measured_once(trained, capsys):
    config, root = trained
    config = config.copy_and_resolve_references()
    clip, vendi = f"clip_run(workdir='{root}/clip')", "vendi(output='embedding')"
    protocol = f"features(extractor={clip!r}, metrics=({vendi!r},))"
    config.evaluate.metrics = (
        "caption_accuracy(split='test', count=4)",
        "decoded_quality(split='test', count=4)",
        f"clip_score(split='test', count=4, extractor={clip!r})",
        f"picture_quality(split='test', count=4, protocol={protocol!r})",
    )
    for _ in range(2):
        evaluation.stack.evaluate(freeze(config), root)
    (row,) = (root / "evaluation" / "caption_accuracy.jsonl").read_text().splitlines()
    values = json.loads(row)["values"]
    assert values["real"] == 1.0
    assert values["count"] == 4
    (out,) = [
        path
        for path in (root / "generated").iterdir()
        if "-4-seed0" in path.name and CAPTION.replace(" ", "_")[:20] not in path.name
    ]
    info = json.loads((out / "info.json").read_text())
    again = caption_accuracy(np.load(out / "samples.npz")["arr_0"], info["captions"])
    assert values["attributes"] == again["attributes"]
    (row,) = (root / "evaluation" / "decoded_quality.jsonl").read_text().splitlines()
    assert -1 <= json.loads(row)["values"]["cosine"] <= 1
    (row,) = (root / "evaluation" / "clip_score.jsonl").read_text().splitlines()
    values = json.loads(row)["values"]
    assert 0 <= values["clip_score"] <= 100
    assert values["real"] != values["clip_score"]
    assert values["clip"]["extractor"] == "clip_run"
    (row,) = (root / "evaluation" / "picture_quality.jsonl").read_text().splitlines()
    values = json.loads(row)["values"]
    assert 1 <= values["vendi"] <= 4
    assert values["count"] == 4


def test_another_prior_before_the_same_decoder(trained):
    config, root = trained
    pipeline = TextToImage(freeze(config), root)
    captions, numbers = [CAPTION] * 8, np.arange(8, dtype=np.int32)
    images = np.asarray(pipeline(captions, 0, numbers))
    none = pipeline.with_prior("")
    assert "prior" not in none.identity
    assert not np.array_equal(np.asarray(none(captions, 0, numbers)), images)
    np.testing.assert_array_equal(none.with_prior("prior")(captions, 0, numbers), images)
    assert none.with_prior("prior").identity == pipeline.identity
    with pytest.raises(ConfigError, match=r"'decoder' is of task 'decoder.*a prior is needed"):
        pipeline.with_prior("decoder")


def test_quality_is_of_the_embeddings_that_are_decoded(trained):
    config, root = trained
    pipeline = TextToImage(freeze(config), root).with_prior("")
    spec = "prior_quality(split='test', count=12, seeds=2)"
    (metric,) = evaluation.stack.build([spec], config).values()

    def no_picture(captions):
        raise AssertionError("nothing is decoded for it")

    of_text = metric(pipeline, no_picture, config)
    # The text embedding in place of a prior's: nothing is random, and it is its own baseline.
    assert of_text["cosine"] == pytest.approx(of_text["text_cosine"])
    assert of_text["recall"] == of_text["text_recall"]
    assert of_text["diversity"] == pytest.approx(0.0, abs=1e-6)
    drawn = metric(pipeline.with_prior("prior"), no_picture, config)
    assert drawn["count"] == 12
    assert drawn["diversity"] > 1e-4


def test_mistakes_of_a_stage_name_its_fields(trained):
    config, root = trained
    for name in ("prior", "clip"):
        other = config.copy_and_resolve_references()
        other.stages[name].sample.checkpoint = 7
        message = rf"config.stages.{name}.sample.checkpoint.*no checkpoint of step 7"
        with pytest.raises(ConfigError, match=message):
            TextToImage(freeze(other), root)
    wider = config.copy_and_resolve_references()
    wider.stages.clip.model.image_width = 64
    with pytest.raises(ConfigError, match=r"config.stages.clip.model.image_width = 64, but"):
        TextToImage(freeze(wider), root)


def test_the_analytic_variance_of_a_stacks_prior_and_of_one_that_was_moved(trained, tmp_path):
    config, root = trained
    copy, moved = shutil.copytree(root, tmp_path / "copy"), tmp_path / "moved"
    analytic.estimate(freeze(Workdir(copy / "prior").read_config()), copy / "prior")
    # Of a prior that is hardly trained the estimated variance is 0, and nothing would change.
    found = copy / "prior" / analytic.FILE
    estimates.load(found)._replace(eps_square=np.zeros(2)).save(found)
    config = config.copy_and_resolve_references()
    path = "{root}/prior/analytic.json"
    config.stages.prior.sample.solver = f"ddpm(variance='analytic', estimates={path!r})"
    captions, numbers = [CAPTION] * 8, np.arange(8, dtype=np.int32)
    here = TextToImage(freeze(config), copy)
    drawn = np.asarray(here.embed(captions, 0, numbers))
    usual = np.asarray(TextToImage(trained[0], root).embed(captions, 0, numbers))
    assert not np.array_equal(drawn, usual)
    copy.rename(moved)
    there = TextToImage(freeze(config), moved)
    assert there.identity == here.identity, "the same pictures, which are not made again"
    np.testing.assert_array_equal(there.embed(captions, 0, numbers), drawn)


def test_clip_is_computed_as_its_stage_says(trained):
    config, root = trained
    usual = TextToImage(freeze(config), root)
    config = config.copy_and_resolve_references()
    config.stages.clip.model.dtype = "bfloat16"
    rough = TextToImage(freeze(config), root)
    assert rough.identity["clip"] != usual.identity["clip"], "the pictures are others"
    expected, found = usual.clip.captions([CAPTION]), rough.clip.captions([CAPTION])
    assert not np.array_equal(found, expected)
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_a_half_trained_stage_is_told(trained, caplog):
    config, root = trained
    longer = config.copy_and_resolve_references()
    longer.stages.decoder.train.steps = 500
    TextToImage(freeze(longer), root)
    assert "config.stages.decoder: at step 4 of 500; --mode=train goes on" in caplog.text
    assert "config.stages.prior" not in caplog.text


def test_few_pictures_are_a_small_batch_and_the_same(asked, tmp_path, monkeypatch, capsys):
    config, root, out = asked
    many = np.load(out / "samples.npz")["arr_0"]
    pipeline, decode, sizes = TextToImage(freeze(config), root), TextToImage.decode, []

    def seen(self, captions, *arguments):
        sizes.append(len(captions))
        return decode(self, captions, *arguments)

    monkeypatch.setattr(TextToImage, "decode", seen)
    for count in (3, 9):
        captions, numbers = [CAPTION] * count, np.arange(count, dtype=np.int32)
        capsys.readouterr()
        there, images = generate.draw(pipeline, freeze(config), tmp_path, captions, numbers)
        same = min(count, 5)
        np.testing.assert_allclose(images[:same].astype(int), many[:same], atol=1)
        assert json.loads((there / "info.json").read_text())["made_by_this_start"] == count
        assert f"image {count}/{count}" in capsys.readouterr().err
    # The nine are a whole batch and one that is filled up: one shape in each of the two runs.
    assert sizes == [3, 8, 8]
