"""Scenes of coloured shapes with captions and attributes, generated on first use."""

import functools

from input_pipeline.sources.base import Source, Subset, check_name
from input_pipeline.sources.shapes_builder import Shapes
from input_pipeline.sources.shapes_render import SPLITS, scene
from input_pipeline.sources.tfds import TfdsSource


def shapes(
    size: int = 32, split: str = "train", data_dir: str | None = None, objects: int = 0
) -> Source:
    """One or two objects in front of a plain background, described by a caption.

    The label is the first object's shape and colour together. Beside image, label and caption
    there are the attributes `shape`, `colour`, `size`, `position`, `background`, `second_shape`,
    `second_colour` and `second_size`.

    Args:
        size: 32 or 64 pixels.
        split: 'train' (20,000), 'test' (2,000) or 'compositional' (2,000), where the first object
            pairs a shape with a colour that it never has in the other two.
        data_dir: where TFDS keeps its data; by default TFDS's own directory. It is written there
            when first used, which takes half a minute.
        objects: only scenes with 1 or with 2 objects, about half each; 0: all.
    """
    check_name("shapes(size=...)", size, (32, 64))
    check_name("shapes(objects=...)", objects, (0, 1, 2))
    given = f", data_dir={data_dir!r}" if data_dir else ""
    given += f", objects={objects}" if objects else ""
    name = f"shapes(size={size}, split={split!r}{given})"
    source = TfdsSource(name, split, functools.partial(_prepared, size, data_dir))
    if not objects:
        return source
    if split not in SPLITS:
        raise ValueError(f"{name}: with objects, split must be one of {', '.join(SPLITS)}")
    # A scene follows from split and index.
    rows = [i for i in range(len(source)) if len(scene(split, i).things) == objects]
    return Subset(source, rows, name, f"objects{objects}")


def _prepared(size: int, data_dir: str | None) -> Shapes:
    builder = Shapes(config=str(size), data_dir=data_dir)
    if not builder.data_path.exists():
        try:
            builder.download_and_prepare(file_format="array_record")
        except OSError:
            # TFDS writes beside the final directory and renames. Of several processes that
            # prepare at once the first one's data stay, and the renaming of the others fails.
            if not builder.data_path.exists():
                raise
        builder = Shapes(config=str(size), data_dir=data_dir)
    return builder
