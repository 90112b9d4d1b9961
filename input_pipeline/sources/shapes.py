"""Scenes of coloured shapes with captions and attributes, generated on first use."""

import functools

from input_pipeline.sources.base import check_name
from input_pipeline.sources.shapes_builder import Shapes
from input_pipeline.sources.tfds import TfdsSource


def shapes(size: int = 32, split: str = "train", data_dir: str | None = None) -> TfdsSource:
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
    """
    check_name("shapes(size=...)", size, (32, 64))
    given = f", data_dir={data_dir!r}" if data_dir else ""
    name = f"shapes(size={size}, split={split!r}{given})"
    return TfdsSource(name, split, functools.partial(_prepared, size, data_dir))


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
