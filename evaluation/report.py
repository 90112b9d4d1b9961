"""The report of a work directory's evaluation, `python main.py --mode=report`.

<workdir>/report/index.html  rows.csv  <metric>-<table>-<what is varied>.png
"""

import json
import os
import re
import zipfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8

from evaluation import report_html as html
from evaluation import report_plots, report_rows
from evaluation.report_rows import Row, Setting
from pipelines.chunks import Chunks
from training.components import ConfigError
from training.files import atomic_write
from training.images import encode_png, grid
from training.workdir import Workdir

# Images in a grid, in a row of it, and the largest side one is shown at.
_IMAGES, _COLUMNS, _SIDE = 64, 8, 128
_PLOT = re.compile(r".+-\d+-(checkpoint|guidance|calls|pareto)\.png")


def report(config: Any, directory: str | os.PathLike[str]) -> None:
    """Write tables, plots and samples of all rows in <workdir>/evaluation, of a run or a stack.

    index.html needs no other file; rows.csv has every number in full. What an earlier report wrote
    is replaced.

    Raises:
        ConfigError: there are no rows, or a line is damaged.
    """
    del config  # Rows say how they were made.
    workdir = Workdir(directory)
    rows = report_rows.read(workdir.evaluation)
    if not rows:
        raise ConfigError(
            f"{os.fspath(workdir.evaluation)}: no rows to report on; run --mode=evaluate first"
        )
    if jax.process_index() != 0:
        return
    out = workdir.path / "report"
    files = {"rows.csv": report_rows.to_csv(rows).encode()}
    sections, known = [], [row for row in rows if row.known]
    tables = report_rows.tables(known)
    for file in dict.fromkeys(table.file for table in tables):
        found = [table for table in tables if table.file == file]
        pictures = [report_plots.plots(table) for table in found]
        for number, shown in enumerate(pictures, start=1):
            for varied, (_, data) in shown.items():
                files[f"{_safe(file)}-{number}-{varied}.png"] = data
        sections.append((file, html.metric(file, found, pictures)))
    if unknown := [row for row in rows if not row.known]:
        sections.append(("Other rows", html.others(unknown) + html.provenance(unknown)))
    if sampled := _samples(workdir, known):
        sections.append(("Samples", sampled))
    page = html.page(f"Evaluation of {os.fspath(directory)}", sections)
    for old in out.glob("*.png") if out.exists() else ():
        if _PLOT.fullmatch(old.name) and old.name not in files:
            old.unlink()
    # The page last: it stands for the rest.
    for name, data in (files | {"index.html": page.encode()}).items():
        atomic_write(out / name, data)
    print(os.fspath(out / "index.html"), flush=True)


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "_", name)


def _samples(workdir: Workdir, rows: Sequence[Row]) -> str:
    """A grid of each setting, of its first seed."""
    shown: dict[str, tuple[Setting, Row]] = {}
    for row in rows:
        if isinstance(row.content.get("samples"), str):
            key = json.dumps(row.setting)
            if key not in shown or _seed(row) < _seed(shown[key][1]):
                shown[key] = row.setting, row
    names = report_rows.varied([items for items, _ in shown.values()])
    parts = []
    for items, row in shown.values():
        name = row.content["samples"]
        told = [(key, value) for key, value in items if key in names and key != "samples"]
        if row.seed is not None:
            told.append(("seed", row.seed))
        told = html.setting(tuple(told)) or name
        found = first_images(workdir.samples, name, *_at_most(row))
        if isinstance(found, str):
            parts.append(html.paragraph(f"{told}: {found}"))
        else:
            picture = grid(_small(found), columns=min(_COLUMNS, len(found)))
            caption = f"{told}: the first {len(found)} samples of {name}"
            parts.append(html.figure(encode_png(picture), caption))
    return "".join(parts)


def _seed(row: Row) -> float:
    return row.seed if isinstance(row.seed, int) else 0


def _at_most(row: Row) -> tuple[int, ...]:
    """As many as were measured; a chunk may hold more."""
    return (min(row.count, _IMAGES),) if isinstance(row.count, int) and row.count > 0 else ()


def first_images(
    samples: epath.Path, name: str, most: int = _IMAGES
) -> UInt8[np.ndarray, "count height width channels"] | str:
    """The first stored samples of a name, or why there are none to show."""
    # A name of a row is no path to elsewhere.
    if epath.Path(name).name != name or name == ".." or not (samples / name / "chunks").exists():
        return f"the samples are not here any more (samples/{name}/chunks)"
    chunks, parts, count = Chunks(samples / name / "chunks", 1), [], 0
    while count < most and list(chunks.directory.glob(f"{len(parts):06d}.*.npz")):
        try:
            images = chunks.read_chunk(len(parts))["images"]
        except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            return f"chunk {len(parts)} of samples/{name} is damaged ({error})"
        parts.append(images)
        count += len(images)
    if not count:
        return f"the samples are not here any more (samples/{name}/chunks)"
    return np.concatenate(parts)[:most]


def _small(
    images: UInt8[np.ndarray, "count height width channels"],
) -> UInt8[np.ndarray, "count small_height small_width channels"]:
    """Means of squares of pixels, so that a side is _SIDE pixels or less."""
    count, height, width, channels = images.shape
    k = -(-max(height, width) // _SIDE)
    if k == 1:
        return images
    whole = images[:, : height // k * k, : width // k * k].astype(np.float32)
    squares = whole.reshape(count, height // k, k, width // k, k, channels)
    return np.rint(squares.mean((2, 4))).astype(np.uint8)
