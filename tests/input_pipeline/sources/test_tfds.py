import io

import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image

from input_pipeline import make_loader
from input_pipeline.sources.tfds import tfds


def build(dataset, data_dir, features, examples):
    class Builder(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
        name = dataset
        VERSION = tensorflow_datasets.core.Version("1.2.0")
        code_path = None

        def _info(self):
            return tensorflow_datasets.core.DatasetInfo(
                builder=self,
                features=tensorflow_datasets.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(examples)

    builder = Builder(data_dir=data_dir)
    builder.download_and_prepare(file_format="array_record")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = str(tmp_path_factory.mktemp("tfds"))
    of = tensorflow_datasets.features
    features = {
        "image": of.Image(shape=(None, None, 3)),
        "label": of.ClassLabel(names=["flat", "steep"]),
        "caption": of.Text(),
        "height": of.Scalar(np.float32),
        "box": of.BBoxFeature(),
    }
    examples = []
    for i in range(10):
        pixels = np.full((5 + i, 9, 3), 10 * i, np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        file.seek(0)
        box = of.BBox(0.0, 0.0, 1.0, 1.0)
        row = {"image": file, "label": i % 2, "caption": f"hill {i}", "height": i / 2, "box": box}
        examples.append(row)
    build("hills", directory, features, examples)
    build("words", directory, {"text": of.Text()}, [{"text": "no image"}])
    return directory


def test_examples_of_a_prepared_dataset(data_dir):
    source = tfds("hills", data_dir=data_dir)
    assert len(source) == 10
    assert source.class_names == ("flat", "steep")
    assert set(source.fields) == {"image", "label", "caption", "height"}
    example = source[3]
    assert np.asarray(Image.open(io.BytesIO(example.pop("image")))).shape == (8, 9, 3)
    assert example == {"label": 1, "caption": "hill 3", "height": 1.5}


def test_loader_reads_it(data_dir):
    source = tfds("hills:1.2.0", data_dir=data_dir)
    fields = ("image", "label", "height")
    batches = make_loader(
        source, image_size=4, channels=3, batch_size=5, seed=0, shuffle=False, fields=fields
    )
    batch = next(batches)
    batches.close()
    assert batch["image"].shape == (5, 4, 4, 3)
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40]
    assert batch["label"].tolist() == [0, 1, 0, 1, 0]
    np.testing.assert_allclose(batch["height"], np.arange(5) / 2)


def test_part_of_a_split(data_dir):
    part = tfds("hills", split="train[80%:]", data_dir=data_dir)
    assert [part[i]["caption"] for i in range(len(part))] == ["hill 8", "hill 9"]
    assert part.fingerprint != tfds("hills", data_dir=data_dir).fingerprint


def test_dataset_that_is_not_prepared(data_dir):
    with pytest.raises(FileNotFoundError) as raised:
        tfds("cifar10", data_dir=data_dir)
    message = str(raised.value)
    assert "\n" not in message
    assert f"tfds(name='cifar10'): not prepared in {data_dir}" in message
    assert "tfds build cifar10" in message
    assert "folder(path=...)" in message


def test_what_is_not_there_is_named(data_dir):
    with pytest.raises(ValueError, match="split: 'valid' is none of 'train'"):
        tfds("hills", split="valid", data_dir=data_dir)
    with pytest.raises(ValueError, match="needs a feature 'image'; it has text"):
        tfds("words", data_dir=data_dir)
