"""Images in folders: a directory, tars or a zip, with classes and captions beside them.

photos/train/cat/0001.jpg     `split` 'train', class 'cat'
photos/train/cat/0001.txt     its caption, or else one line of
photos/train/metadata.jsonl   {"file_name": "cat/0001.jpg", "caption": "a cat on a mat"}

The file of captions may be called captions.jsonl as well, and the caption `text`.
"""

import functools
import hashlib
import json
from collections.abc import Collection, Sequence

from input_pipeline.sources.archive import Archive, open_archive
from input_pipeline.sources.base import Source
from input_pipeline.sources.class_captions import captioned

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_METADATA = ("metadata.jsonl", "captions.jsonl")


class Folder(Source):
    """Images below one folder in the order of their names; made by `folder`."""

    def __init__(self, name: str, archive: Archive, split: str, classes: Sequence[str]):
        self.name = name
        self._archive = archive
        self._root = f"{split.strip('/')}/" if split.strip("/") else ""
        below = [file for file in archive.sizes if file.startswith(self._root)]
        if not below:
            folders = sorted({file.split("/")[0] for file in archive.sizes if "/" in file})
            has = f"it has {', '.join(folders)}" if folders else "it has no folders"
            raise ValueError(f"{name}: there is no file under split {split!r}; {has}")
        self._images = sorted(file for file in below if file.lower().endswith(IMAGES))
        if not self._images:
            raise ValueError(f"{name}: no images ({' '.join(IMAGES)}) among {len(below)} files")
        self._metadata = self._read_metadata()
        self.class_names, self._labels = self._read_classes(classes)
        uncaptioned = (file for file in self._images if not self._has_caption(file))
        self._uncaptioned = next(uncaptioned, None)
        self.fields = ("image", *(["label"] if self.class_names else []))
        if self._uncaptioned is None:
            self.fields += ("caption",)

    def _relative(self, file: str) -> str:
        return file.removeprefix(self._root)

    def _read_metadata(self) -> dict[str, str]:
        files = [
            self._root + name for name in _METADATA if self._root + name in self._archive.sizes
        ]
        if not files:
            return {}
        if len(files) > 1:
            raise ValueError(f"{self.name}: captions in {' and in '.join(files)}; keep one of them")
        captions = {}
        for number, line in enumerate(self._archive.read(files[0]).decode().splitlines(), start=1):
            if not line.strip():
                continue
            where = f"{self.name}: line {number} of {files[0]}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where} is not JSON: {error}") from error
            caption = row.get("caption", row.get("text"))
            if "file_name" not in row or not isinstance(caption, str):
                raise ValueError(
                    f"{where} needs 'file_name' and 'caption' (or 'text'), and has {', '.join(row)}"
                )
            captions[row["file_name"]] = caption
        return captions

    def _read_classes(self, classes: Sequence[str]) -> tuple[tuple[str, ...], list[int]]:
        parts = [self._relative(file).split("/") for file in self._images]
        found = {part[0] for part in parts if len(part) > 1}
        if not found and not classes:
            return (), []
        loose = next((part[0] for part in parts if len(part) == 1), None)
        if loose is not None:
            raise ValueError(
                f"{self.name}: {loose} lies beside the class folders ({', '.join(sorted(found))}) "
                "and so has no class; move it into one"
            )
        names = tuple(classes) or tuple(sorted(found))
        if unknown := sorted(found - set(names)):
            raise ValueError(
                f"{self.name}: folder {unknown[0]!r} is none of the classes {', '.join(names)}"
            )
        numbers = {name: number for number, name in enumerate(names)}
        return names, [numbers[part[0]] for part in parts]

    def _sidecar(self, file: str) -> str:
        return file.rpartition(".")[0] + ".txt"

    def _has_caption(self, file: str) -> bool:
        return self._relative(file) in self._metadata or self._sidecar(file) in self._archive.sizes

    def _caption(self, file: str) -> str:
        caption = self._metadata.get(self._relative(file))
        return self._archive.read(self._sidecar(file)).decode() if caption is None else caption

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of names, sizes, classes and captions in the file of them.

        The same for a directory and for a tar or zip of it. Contents are not read, so an image
        replaced by another one of the same name and size goes unseen.
        """
        sizes = self._archive.sizes
        listing = [
            [self._relative(file), sizes[file], sizes.get(self._sidecar(file), -1)]
            for file in self._images
        ]
        content = json.dumps([listing, self.class_names, sorted(self._metadata.items())])
        return f"folder-{len(self)}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self._images)

    def example(self, index: int, fields: Collection[str]) -> dict:
        """Bytes of the image, its label and, only where asked for, the caption."""
        file = self._images[index]
        example = {"image": self._archive.read(file)}
        if self.class_names:
            example["label"] = self._labels[index]
        if "caption" in fields:
            example["caption"] = self._caption(file).strip()
        return example

    def describe(self, index: int) -> str:
        """Path of the image."""
        return f"{self._archive.path}/{self._images[index]}"

    def require(self, fields: Sequence[str]) -> None:
        """Raises ValueError where the source cannot give one of the fields."""
        if "caption" in fields and self._uncaptioned is not None:
            raise ValueError(
                f"fields: captions are asked for, and {self._uncaptioned} in {self._archive.path} "
                f"has none; put it into {self._sidecar(self._uncaptioned)} or into "
                f"{self._root}{_METADATA[0]}"
            )
        super().require(fields)


def folder(
    path: str, split: str = "", classes: Sequence[str] = (), templates: Sequence[str] = ()
) -> Source:
    """Images of any format in a directory, an uncompressed .tar or a .zip, or several of these.

    Args:
        path: where it is; with a `*`, as in 'laion/*.tar', all that match are taken as one.
        split: the sub-folder to take, such as 'train'; '' for all.
        classes: names of the class folders in the order of their labels; by default those that
            are there, sorted. Give it where a split may lack a class of another split.
        templates: such as 'a photo of a {}', in turn: captions made of the names of the classes.
    """
    arguments = f"path={path!r}, split={split!r}"
    if classes:
        arguments += f", classes={tuple(classes)!r}"
    source = Folder(f"folder({arguments})", open_archive(path), split, classes)
    return captioned(source, templates)
