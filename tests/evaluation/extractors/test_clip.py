"""CLIP and DINOv2 as extractors, from files and from a run; the towers' goldens are beside their
readers' tests."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from evaluation.extractors import EXTRACTORS, CaptionEncoder, Runner
from evaluation.extractors.clip import MODELS as CLIPS
from evaluation.extractors.clip import _params
from evaluation.extractors.dinov2 import MODELS as DINOV2S
from models.clip import make_clip
from models.dinov2 import DINOv2Config, make_dinov2
from models.pretrained import clip as reader
from tests.evaluation.extractors import runs
from tests.golden.models import generated
from tests.pipelines.test_embed import Pictures, make_config
from training import encoder, tokens
from training.components import ConfigError
from training.mesh import make_mesh
from training.workdir import Workdir

GOLDEN = pathlib.Path("tests/golden/models")
TOLD = json.loads((GOLDEN / "clip.json").read_text())
VOCABULARY = TOLD["tokenizer"]["vocab"]
CLIP = dataclasses.replace(
    reader.clip_config(TOLD["new"]["config"]), vocab_size=len(VOCABULARY), end_token=-1
)
DINOV2 = DINOv2Config(image_size=98, width=24, depth=3, heads=2)
# Wider than high, and larger than the networks' images.
IMAGES = np.random.RandomState(0).randint(0, 256, (3, 120, 131, 3)).astype(np.uint8)


def weights(path, shapes):
    save_file({name: generated.tensor(name, shape) for name, shape in shapes.items()}, path)
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    shapes = dict(TOLD["new"]["shapes"])
    shapes["text_model.embeddings.token_embedding.weight"] = [len(VOCABULARY), 24]
    hub = json.loads((GOLDEN / "dinov2.json").read_text())["hub"]
    (root / "vocab.json").write_text(json.dumps(VOCABULARY))
    merges = "#version: 0.2\n" + "\n".join(TOLD["tokenizer"]["merges"]) + "\n"
    (root / "merges.txt").write_text(merges)
    return {
        "clip": weights(root / "clip.safetensors", shapes),
        "dinov2": weights(root / "dinov2.safetensors", hub),
        "tokenizer": str(root),
    }


@pytest.fixture(scope="module", autouse=True)
def small():
    """Networks of the goldens' sizes under the names of published ones."""
    patch = pytest.MonkeyPatch()
    patch.setitem(CLIPS, "vitl14_336", CLIP)
    patch.setitem(DINOV2S, "vitl14", DINOV2)
    yield
    patch.undo()


def run(extractor, images):
    return Runner(extractor, make_mesh(devices=jax.devices()[:1]), batch_size=3)(images)


def by_pil(images, side, mean, std):
    """As the programs do that the numbers are published with."""
    resized = [Image.fromarray(image).resize((side, side), Image.BICUBIC) for image in images]
    return np.float32((np.stack(resized) / 255 - np.array(mean)) / np.array(std))


def test_clip_of_a_file(files):
    extractor = EXTRACTORS["clip"](path=files["clip"])
    (embedding,) = run(extractor, IMAGES).values()
    square = IMAGES[:, :, 5:125]
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    x = by_pil(square, CLIP.image_size, mean, std)
    expected = jax.jit(make_clip(CLIP).apply)(extractor.params, x).image_embedding
    assert embedding.shape == (3, extractor.outputs["embedding"])
    np.testing.assert_allclose(embedding, expected, atol=2e-5)
    assert np.abs(np.linalg.norm(embedding, axis=1) - 1).min() > 0.1


def test_dinov2_of_a_file(files):
    """On 8 bits it is PIL's image; the default, on floats, is near."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    found = {}
    for resize in ("pil", "antialiased"):
        extractor = EXTRACTORS["dinov2"](resize=resize, path=files["dinov2"])
        (found[resize],) = run(extractor, IMAGES).values()
    x = by_pil(IMAGES, DINOV2.image_size, mean, std)
    expected = jax.jit(make_dinov2(DINOV2).apply)(extractor.params, x)
    np.testing.assert_allclose(found["pil"], expected, atol=2e-5)
    off = np.abs(found["antialiased"] - expected).max()
    assert 1e-4 < off < 0.05


def test_captions_of_a_file(files):
    texts = TOLD["tokenizer"]["texts"]
    extractor = EXTRACTORS["clip"](path=files["clip"])
    embed = CaptionEncoder(extractor, files["tokenizer"], batch_size=3)
    found = embed(texts)
    ids = embed.tokenizer(texts)
    expected = jax.jit(make_clip(CLIP).apply)(extractor.params, tokens=ids).text_embedding
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(np.unique(found.round(3), axis=0)) == len(texts)
    assert embed([]).shape == (0, CLIP.embedding_dim)


def test_either_layout_of_clip():
    """OpenAI's names go to OpenAI's reader, which says what it lacks in its own terms."""
    with pytest.raises(ValueError, match="text_model"):
        _params({"visual.proj": np.zeros((32, 20), np.float32)}, CLIP)


def test_mistakes(files):
    extractor = EXTRACTORS["clip"](path=files["clip"])
    with pytest.raises(ConfigError, match=r"tokenizer='': clip-vitl14_336-pil needs the path"):
        CaptionEncoder(extractor)
    with pytest.raises(ConfigError, match="no such file or directory"):
        CaptionEncoder(extractor, "nowhere")
    with pytest.raises(ConfigError, match="embeds no captions"):
        CaptionEncoder(EXTRACTORS["dinov2"](path=files["dinov2"]))
    with pytest.raises(ConfigError, match=r"dinov2\.safetensors: .*do not fit"):
        EXTRACTORS["clip"](path=files["dinov2"])
    with pytest.raises(ConfigError, match=r"model='vitb32'.*allowed: vitl14, vitl14_336"):
        EXTRACTORS["clip"](model="vitb32")


def test_clip_of_a_run(tmp_path):
    config = make_config()
    runs.start(tmp_path, config, step=2)
    tokens.prepare(config, Pictures("train"), Workdir(tmp_path))
    extractor, own = EXTRACTORS["clip_run"](str(tmp_path)), encoder.load(tmp_path)
    images = np.random.RandomState(1).randint(0, 256, (3, 8, 8, 1)).astype(np.uint8)

    def normalized(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    (found,) = run(extractor, images).values()
    np.testing.assert_allclose(normalized(found), own.images(images), atol=1e-5)
    texts = ["picture one", "picture three"]
    found = CaptionEncoder(extractor)(texts)
    np.testing.assert_allclose(normalized(found), own.captions(texts), atol=1e-5)
    assert extractor.identity["checkpoint"] == 2
    assert json.loads(json.dumps(extractor.identity)) == extractor.identity
    # Twice the size, each pixel four times: resized back to nearly what it was.
    flat = np.full((1, 8, 8, 1), 90, np.uint8)
    (small,), (large,) = (
        run(extractor, x).values() for x in (flat, flat.repeat(2, 1).repeat(2, 2))
    )
    np.testing.assert_allclose(small, large, atol=1e-5)
    with pytest.raises(ValueError, match="3 channels, and the network is of grey"):
        run(extractor, np.zeros((1, 8, 8, 3), np.uint8))
