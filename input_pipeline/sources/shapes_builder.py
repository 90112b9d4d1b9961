"""The TFDS dataset of shapes; works without TensorFlow."""

import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from input_pipeline.sources import shapes_render as render


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Scenes of one or two coloured shapes with captions, drawn from their index.

    A change of what is drawn needs a new VERSION; prepared data of the old one stays as it is.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(
        tfds.core.BuilderConfig(name=str(size), description=f"{size} px") for size in (32, 64)
    )

    # There are no downloads and so no checksums beside this file. Looking for them would need
    # importlib_resources, which TFDS does not declare as a dependency.
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        size = int(self.builder_config.name)
        classes = [f"{colour} {shape}" for shape in render.SHAPES for colour in render.COLOURS]
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            disable_shuffling=True,  # record i is scene i; the loader shuffles
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=classes),
                    "caption": tfds.features.Text(),
                    **dict.fromkeys(render.scene("train", 0).attributes, tfds.features.Text()),
                }
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        return {split: self._generate_examples(split) for split in render.SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        for index in range(render.SPLITS[split]):
            scene = render.scene(split, index)
            pixels = render.render(scene, int(self.builder_config.name))
            yield (
                index,
                {
                    "image": _png(pixels),
                    "label": scene.label,
                    "caption": scene.caption,
                    **scene.attributes,
                },
            )


def _png(pixels: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    file.seek(0)
    return file
