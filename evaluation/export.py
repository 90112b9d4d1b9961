"""Images as the .npz that ADM's evaluation reads, for other programs to score.

python -m evaluation.export runs/cifar10/samples/<name> samples.npz
python -m evaluation.export some/folder samples.npz
"""

import argparse
import json
import os
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8

from evaluation import image_files
from evaluation.image_files import FileError, Images
from pipelines.chunks import Chunks
from training.files import is_bucket

# Images at a time where they are copied.
_CHUNK = 256
# Dates are left out, so that the same images give the same file.
_DATE = (1980, 1, 1, 0, 0, 0)


def export(images: Images, path: str | os.PathLike[str]) -> None:
    """Write images, and labels where they have some, to an .npz; see `write`."""
    write(path, images.chunks(_CHUNK), images.count, images.side, images.labels)


def export_samples(
    samples: str | os.PathLike[str], path: str | os.PathLike[str], count: int = 0
) -> None:
    """Write the samples of <workdir>/samples/<name>, from its chunks, to an .npz; see `write`.

    Args:
        samples: the directory; of a job that is still running where `count` says how many.
        path: of the .npz.
        count: the first so many; 0: all, by its info.json.

    Raises:
        FileError: they are not there, or not so many.
    """
    samples = epath.Path(samples)
    chunks, info = samples / "chunks", samples / "info.json"
    first = sorted(chunks.glob("000000.*.npz"))
    if not first or not (count or info.exists()):
        raise FileError(
            f"{samples}: no finished samples (chunks/ and info.json); let --mode=sample end, or "
            "say how many to take"
        )
    count = count or json.loads(info.read_text())["count"]
    size = 0
    for file in first:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            size += len(arrays["row"])
            side = arrays["images"].shape[1]
    stored = Chunks(chunks, size)
    if stored.missing(count):
        raise FileError(f"{samples}: not all of {count} samples are there; let --mode=sample end")
    labels = np.concatenate([part["labels"] for part in stored.each(count)])
    # Those of a model without classes are all 0.
    labels = labels if labels.any() else None
    write(path, (part["images"] for part in stored.each(count)), count, side, labels)


def write(
    path: str | os.PathLike[str],
    chunks: Iterable[UInt8[np.ndarray, "rows height width channels"]],
    count: int,
    side: int,
    labels: Int[np.ndarray, " count"] | None = None,
) -> None:
    """Write images chunk by chunk: `arr_0` uint8 [count, side, side, 3], `arr_1` int64 labels.

    Grey images become RGB, as ADM's network takes no other. The file is there whole or not at all.

    Raises:
        ValueError: the chunks do not have `count` images of this side.
        FileError: the path is a bucket's.
    """
    target = Path(path)
    if is_bucket(epath.Path(path)):
        raise FileError(f"{path}: is in a bucket; write to a local file and copy it")
    if labels is not None and len(labels) != count:
        raise ValueError(f"{len(labels)} labels for {count} images")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                _member(archive, "arr_0", np.dtype(np.uint8), (count, side, side, 3), _rgb(chunks))
                if labels is not None:
                    rows = labels.astype(np.int64)
                    _member(archive, "arr_1", rows.dtype, rows.shape, [rows])
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _rgb(chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for images in chunks:
        yield images.repeat(3, axis=-1) if images.shape[-1] == 1 else images


def _member(
    archive: zipfile.ZipFile,
    name: str,
    dtype: np.dtype,
    shape: tuple[int, ...],
    parts: Iterable[np.ndarray],
) -> None:
    """An array of a zip whose rows come in parts."""
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    entry = zipfile.ZipInfo(f"{name}.npy", _DATE)
    rows = 0
    with archive.open(entry, "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            if part.shape[1:] != shape[1:] or part.dtype != dtype:
                raise ValueError(
                    f"{name}: {part.dtype} {list(part.shape)} from row {rows} on, where "
                    f"{dtype} {list(shape)} is written"
                )
            rows += len(part)
            file.write(np.ascontiguousarray(part).data)
    if rows != shape[0]:
        raise ValueError(f"{name}: {rows} rows, where {shape[0]} were to be written")


def main(arguments: list[str] | None = None) -> int:
    """Exports what the command line names; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", help="directory of samples of a run, folder, archive or .npz")
    parser.add_argument("out", help="the .npz")
    parser.add_argument("--count", type=int, default=0, help="the first so many samples; 0: all")
    given = parser.parse_args(arguments)
    try:
        if (Path(given.images) / "chunks").is_dir():
            export_samples(given.images, given.out, given.count)
        else:
            export(image_files.read(given.images), given.out)
    except FileError as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    print(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
