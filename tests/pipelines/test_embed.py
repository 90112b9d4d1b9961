"""A CLIP of a few steps, then all that is done with it: embedding, contract, metrics of a model."""

import json
import shutil

import numpy as np
import pytest

from configs import digits, shapes_clip
from evaluation import job
from input_pipeline.sources.base import Source
from input_pipeline.sources.records import records
from pipelines.embed import embed
from pipelines.likelihood import likelihood
from pipelines.sampling import sample
from training import encoder, loop
from training.components import ConfigError
from training.config import freeze, save
from training.contract import EmbeddingContract

NAMES = ("one", "two", "three", "four")


class Pictures(Source):
    """Forty grey squares with a few captions."""

    fields, class_names = ("image", "label", "caption"), NAMES

    def __init__(self, split):
        self.name = f"pictures(split={split!r})"
        self._shade = {"train": 0, "test": 3}[split]

    @property
    def fingerprint(self):
        return self.name

    def __len__(self):
        return 40

    def example(self, index, fields):
        image = np.full((8, 8, 1), 6 * index + self._shade, np.uint8)
        return {"image": image, "label": index % 4, "caption": f"picture {NAMES[index % 4]}"}


def make_config(vocab_size=300, **data):
    config = shapes_clip.get_config("smoke")
    config.model.update(image_width=16, text_width=16, embedding_dim=8, vocab_size=vocab_size)
    config.model.update(image_heads=2, text_heads=2)
    config.data.update(source="pictures(split='train')", image_size=8, channels=1)
    config.train.update(steps=2, batch_size=8)
    config.optimizer.update(warmup_steps=0, decay="constant")
    config.log.update(every=1, preview_every=2)
    config.evaluate.metrics = (
        "retrieval(count=0, ks=(1, 4))",
        "zero_shot(templates=('picture {}',))",
    )
    config.embed.update(statistics=32, text_features=True)
    config.data.update(**data)
    return freeze(config)


@pytest.fixture(scope="module", autouse=True)
def pictures():
    patch = pytest.MonkeyPatch()
    patch.setattr("input_pipeline.SOURCES", {"pictures": lambda split="train": Pictures(split)})
    yield
    patch.undo()


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    loop.train(make_config(), str(path))
    return path


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def test_training_keeps_its_tokenizer_and_resumes(run):
    before = (run / "tokenizer.json").read_bytes()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert {"accuracy_image", "accuracy_text", "logit_scale"} <= set(json.loads(lines[-1]))
    assert list((run / "previews").glob("*.png"))
    loop.train(make_config(), str(run))
    assert (run / "tokenizer.json").read_bytes() == before
    state = next((run / "checkpoints" / "2").glob("data*"))
    assert encoder.load(run).tokenizer.fingerprint in "".join(
        file.read_text(errors="ignore") for file in state.rglob("*") if file.is_file()
    )


def test_a_table_too_small_for_the_tokenizer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.model\.vocab_size = 200: must be \d+ or more"):
        loop.train(make_config(vocab_size=200), str(tmp_path))
    with pytest.raises(ConfigError, match="needs token ids"):
        loop.train(make_config(tokenizer=""), str(tmp_path / "none"))


def test_records_hold_what_the_encoder_gives(run, capsys):
    config = make_config()
    embed(config, run)
    line = capsys.readouterr().out.splitlines()[-1]
    assert f"records(path='{run}/embeddings', split='train')" in line
    stored, clip = records(str(run / "embeddings")), encoder.load(run)
    assert set(stored.fields) == {
        *("image", "label", "caption"),
        *("image_embedding", "text_embedding", "text_features", "text_mask", "tokens"),
    }
    rows = [stored[k] for k in range(40)]
    images = np.stack([Pictures("train").example(k, ())["image"] for k in range(40)])
    found = {name: np.stack([row[name] for row in rows]) for name in stored.fields}
    np.testing.assert_array_equal(found["image"], images)
    np.testing.assert_allclose(found["image_embedding"], clip.images(images), atol=1e-6)
    np.testing.assert_array_equal(found["tokens"], clip.tokenizer(found["caption"].tolist()))
    text, features = clip.texts(found["tokens"])
    np.testing.assert_allclose(found["text_embedding"], text, atol=1e-6)
    np.testing.assert_allclose(found["text_features"], features, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found["image_embedding"], axis=1), 1, rtol=1e-5)
    # What network and checkpoint these are of, and of which images.
    contract = EmbeddingContract.read(run / "embeddings")
    assert contract == EmbeddingContract.read(run)
    assert (contract.dimension, contract.normalized, contract.scale) == (8, True, 8**0.5)
    everything = clip.source(Pictures("train"), count=32)["embedding"]
    np.testing.assert_allclose(contract.mean, everything.mean(0), atol=1e-5)
    np.testing.assert_allclose(contract.std, everything.std(0), atol=1e-5)
    assert np.std(contract.mean) > 0


def test_a_contract_of_other_parameters_is_measured_anew(run):
    clip = encoder.load(run)
    first = clip.contract(16)
    assert clip.contract(32) == first
    raw = encoder.load(run, "params").contract(16)
    assert raw.encoder != first.encoder
    assert EmbeddingContract.read(run) == raw


def test_metrics_of_the_model_need_no_samples_and_are_kept(run, capsys):
    config = make_config()
    job.evaluate(config, run)
    first = capsys.readouterr().out
    paths = [run / "evaluation" / f"{name}.jsonl" for name in ("retrieval", "zero_shot")]
    recalls, accuracy = (json.loads(path.read_text()) for path in paths)
    assert recalls["values"]["images"] == 40
    assert recalls["values"]["captions"] == 4
    assert recalls["values"]["image_to_text"]["R@4"] == 1.0
    assert accuracy["values"]["classes"] == 4
    assert (accuracy["checkpoint"], accuracy["ema"]) == (2, "default")
    job.evaluate(config, run)
    assert capsys.readouterr().out == first
    assert len(paths[0].read_text().splitlines()) == 1


@pytest.mark.parametrize("mode", [sample, likelihood])
def test_an_encoder_has_no_samples_and_no_likelihood(run, mode):
    with pytest.raises(
        ConfigError, match=r"config\.task = 'clip': .*take --mode=evaluate or embed"
    ):
        mode(make_config(), str(run))


def test_a_run_of_another_task_is_no_encoder(tmp_path):
    save(digits.get_config("smoke"), tmp_path / "other" / "config.json")
    with pytest.raises(ConfigError, match=r"is a run of task 'diffusion', and no encoder"):
        encoder.load(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        embed(make_config(), tmp_path / "nowhere")
