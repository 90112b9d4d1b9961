"""Image datasets that TFDS has prepared, read without TensorFlow."""

import functools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import tensorflow_datasets
from tensorflow_datasets.core.decode import DeserializeMethod
from tensorflow_datasets.core.features import ClassLabel, Image, Text
from tensorflow_datasets.core.read_only_builder import builder_from_files
from tensorflow_datasets.proto import tf_example_pb2

from input_pipeline.sources.base import Source, check_name
from input_pipeline.sources.class_captions import captioned

Builder = tensorflow_datasets.core.DatasetBuilder


class TfdsSource(Source):
    """One split of a prepared dataset: its image and every feature that is a scalar or a text.

    `open_builder` is called in each process that reads and gives the prepared builder.
    """

    def __init__(self, name: str, split: str, open_builder: Callable[[], Builder]):
        self.name = name
        self._split = split
        self._open_builder = open_builder
        info = self._builder.info
        for part in split.split("+"):
            check_name(f"{name}: split", part.partition("[")[0], sorted(info.splits))
        features = dict(info.features.items())
        if not isinstance(features.get("image"), Image):
            raise ValueError(f"{name}: needs a feature 'image'; it has {', '.join(features)}")
        self._texts = {key for key, value in features.items() if isinstance(value, Text)}
        scalars = [key for key, value in features.items() if value.shape == ()]
        self.fields = ("image", *sorted({*scalars, *self._texts}))
        if isinstance(features.get("label"), ClassLabel):
            self.class_names = tuple(features["label"].names)

    def __getstate__(self) -> dict:
        opened = ("_builder", "_records")
        return {name: value for name, value in vars(self).items() if name not in opened}

    @functools.cached_property
    def _builder(self) -> Builder:
        return self._open_builder()

    @functools.cached_property
    def _records(self) -> Sequence[bytes]:
        try:
            return self._builder.as_data_source(
                self._split, deserialize_method=DeserializeMethod.RAW_BYTES
            )
        except NotImplementedError as error:
            raise ValueError(
                f"{self.name}: {self._builder.data_dir} holds "
                f"{self._builder.info.file_format.value} files, which have no random access; "
                "prepare the dataset again with --file_format=array_record"
            ) from error

    @property
    def fingerprint(self) -> str:
        """Name and version of the dataset, and the split's examples and bytes."""
        info = self._builder.info
        split = info.splits[self._split]
        return f"tfds-{info.full_name}-{self._split}-{split.num_examples}-{int(split.num_bytes)}"

    def __len__(self) -> int:
        return len(self._records)

    def example(self, index: int, fields: Collection[str]) -> dict:
        """The fields asked for; the image as the bytes of its file."""
        # TFDS's own decoding of all features takes more than twice the time.
        features = tf_example_pb2.Example.FromString(self._records[index]).features.feature
        example = {}
        for field in fields:
            values = features[field]
            (example[field],) = getattr(values, values.WhichOneof("kind")).value
        for field in self._texts & example.keys():
            example[field] = example[field].decode()
        return example


def tfds(
    name: str,
    split: str = "train",
    data_dir: str | None = None,
    templates: Sequence[str] = (),
) -> Source:
    """Any image dataset of TFDS that is prepared on this machine, in a format of random access.

    Args:
        name: 'cifar10', 'cifar10:3.0.2', 'imagenet_resized/64x64', ...
        split: a split, a part of one ('train[:90%]') or several ('train+test').
        data_dir: where TFDS keeps its data; by default TFDS's own directory.
        templates: such as 'a photo of a {}', in turn: captions made of the names of the classes.
    """
    given = f", data_dir={data_dir!r}" if data_dir else ""
    source = f"tfds(name={name!r}, split={split!r}{given})"
    found = TfdsSource(source, split, functools.partial(_prepared, name, data_dir))
    return captioned(found, templates)


def _prepared(name: str, data_dir: str | None) -> Builder:
    try:
        return builder_from_files(name, data_dir=data_dir)
    except tensorflow_datasets.core.DatasetNotFoundError as error:
        where = Path(data_dir or tensorflow_datasets.core.constants.DATA_DIR).expanduser()
        raise FileNotFoundError(
            f"tfds(name={name!r}): not prepared in {where}; run `tfds build {name} "
            f"--file_format=array_record --data_dir={where}` where TensorFlow is installed, or "
            "use folder(path=...) on the images themselves"
        ) from error
