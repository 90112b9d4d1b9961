"""The report of an evaluation: what its tables, plots and files say of rows."""

import base64
import csv
import io
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from evaluation import job, report_html, report_rows
from evaluation.report import first_images, report
from tests.evaluation import toy_run
from tests.evaluation.written_rows import guided, row, tables, write
from training.components import ConfigError
from training.config import freeze
from training.workdir import Workdir

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Tags, visible text, and tables as rows of (text, classes) of a page; checks nesting."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.tables, self.warnings = [], [], [], [], []
        self.images, self.cell, self.warned = [], None, None
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append((tag, given))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(given["src"])
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = ["", (given.get("class") or "").split()]
            self.tables[-1][-1].append(self.cell)
        elif tag == "p" and given.get("class") == "warning":
            self.warnings.append("")
            self.warned = True

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.cell = None
        elif tag == "p":
            self.warned = None

    def handle_data(self, data):
        self.text.append(data)
        if self.cell is not None:
            self.cell[0] += data
        if self.warned:
            self.warnings[-1] += data

    def texts(self, number):
        return [[cell[0] for cell in row] for row in self.tables[number]]


def page(path):
    report(None, path)
    return Page((path / "report" / "index.html").read_text())


def test_seeds_of_a_setting_are_one_line(tmp_path):
    """Least, mean and standard deviation by hand: 1, 2, 6 have mean 3 and variance 7."""
    rows = [row({"fid": value}, seed=k) for k, value in enumerate((2.0, 1.0, 6.0))]
    rows += [row({"fid": 2.5}, steps=20)]
    found = page(write(tmp_path, rows))
    assert found.texts(0) == [
        ["steps", "network calls", "seeds", "fid"],
        ["least", "mean", "std"],
        ["10", "10", "3", "1", "3", "2.6"],
        ["20", "20", "1", "2.5", "2.5", ""],
    ]
    marked = [cell[0] for line in found.tables[0] for cell in line if "best" in cell[1]]
    assert marked == ["2.5"]
    text = "".join(found.text)
    assert "The same in all rows: checkpoint 1000, ema default, solver ddim(eta=0.0)" in text
    assert "100 images or examples a row; reference r; extractor inception." in text
    assert text.count("c0ffee") == 1
    assert not found.warnings


def test_the_best_is_the_least_or_the_greatest_by_value(tmp_path):
    values = {"fid": (3.0, 2.0, 2.0), "precision": (0.5, 0.6, 0.4), "strange": (1.0, 2.0, 3.0)}
    rows = [row({k: v[i] for k, v in values.items()}, steps=10 + i) for i in range(3)]
    (table,) = tables(tmp_path, rows)
    best = {value: table.best(value) for value in table.values}
    assert best == {"fid": {1, 2}, "precision": {1}, "strange": set()}
    assert table.headline == ("fid", "precision")
    (alone,) = tables(tmp_path, rows[:1])
    assert alone.best("fid") == set()
    (equal,) = tables(tmp_path, [row({"fid": 1.0}, steps=steps) for steps in (10, 20)])
    assert equal.best("fid") == set()
    # What is not in the summary is below it.
    found = page(write(tmp_path, rows))
    assert found.texts(0)[0] == ["steps", "network calls", "seeds", "fid", "precision"]
    assert found.texts(1)[0][-1] == "strange"


@pytest.mark.parametrize(
    ("value", "sign"),
    [
        *((name, -1) for name in ("fid", "sfid", "kid", "cmmd", "distance", "fid_infinity")),
        *((name, -1) for name in ("fd_dinov2", "classifier_frechet", "classifier_kernel")),
        *((name, 1) for name in ("inception_score", "clip_score", "classifier_score", "vendi")),
        *((name, 1) for name in ("precision", "recall", "density", "coverage", "accuracy")),
        *((name, 1) for name in ("psnr", "ssim", "recall.1")),
        *((name, 0) for name in ("fid_mean_term", "fd_dinov2_rank", "kid_std", "text_recall.1")),
        *(
            (name, 0)
            for name in ("inception_score_std", "classifier_accuracy", "all", "precisions")
        ),
        ("fid_infinity_standard_error", 0),
        ("fd_dinov2_least_eigenvalue", 0),
        ("distance_reference_count", 0),
    ],
)
def test_which_direction_is_better(value, sign):
    assert report_rows.direction("edm", value) == sign


def test_rows_that_do_not_compare_are_apart(tmp_path):
    rows = [row({"fid": 2.0}), row({"fid": 1.0}, steps=20), row({"fid": 9.0}, count=50)]
    found = page(write(tmp_path, rows))
    (warning,) = found.warnings
    assert warning.startswith("Rows of edm.jsonl differ in number of images: their numbers do not")
    assert [len(table) for table in found.tables] == [3, 2]
    # A best one is of its own table only.
    marked = [
        cell[0] for table in found.tables for line in table for cell in line if "best" in cell[1]
    ]
    assert marked == ["1"]
    other = row({"fid": 1.0}) | {"extractor": {"name": "inception", "sha256": "f" * 64}}
    found = tables(tmp_path, [rows[0], row({"fid": 1.0}, reference="s"), other])
    assert report_rows.differing(found) == ["reference", "extractor"]
    # The same file elsewhere is the same reference.
    moved = row({"fid": 1.0}, steps=20)
    moved["reference"] |= {"name": "elsewhere", "path": "/elsewhere.npz"}
    assert len(tables(tmp_path, [rows[0], moved])) == 1


def test_a_seed_that_is_there_twice_counts_once(tmp_path):
    rows = [row({"fid": 5.0}), row({"fid": 3.0}, seed=1), row({"fid": 4.0})]
    (table,) = tables(tmp_path, rows)
    assert table.results[0].of("fid") == (4.0, 3.0)
    assert page(tmp_path).warnings == [
        "Rows that repeat a setting and its seed: 1; the last of a seed counts."
    ]


HOSTILE = "<script>alert('x')</script>\"&<img src=x onerror=y>"


def test_no_text_becomes_markup(tmp_path):
    path = tmp_path / "<b onload=z>&amp;\"'"
    rows = [
        row({"fid": 1.0, HOSTILE: 2.0}, metric=HOSTILE, ema=HOSTILE),
        row({"fid": 1.0}, metric=HOSTILE, ema="$x_{", step=2000),
        row({"fid": 1.0}, metric=HOSTILE, ema="$x_{"),
        row({"fid": 1.0}, count=50, metric=HOSTILE, reference=HOSTILE),
        {HOSTILE: HOSTILE},
    ]
    for line in rows[:4]:
        line["samples"] = HOSTILE
        line["provenance"]["code"] = HOSTILE
        line["seconds"] = {HOSTILE: 1}
    found = page(write(path, rows, file="<i>"))
    tags = {tag for tag, _ in found.tags}
    assert not tags & {"script", "b", "i"}
    assert all(source.startswith("data:image/png;base64,") for source in found.images)
    assert not any(name.startswith("on") for _, given in found.tags for name in given)
    assert str(path) in "".join(found.text)
    assert "".join(found.text).count(HOSTILE) >= 8
    picture = Page(report_html.figure(b"", HOSTILE))
    assert [tag for tag, _ in picture.tags] == ["figure", "img", "figcaption"]
    assert picture.tags[1][1]["alt"] == "".join(picture.text) == HOSTILE
    links = [given[name] for _, given in found.tags for name in ("href", "src") if name in given]
    assert all(link.startswith(("#", "data:")) for link in links)


def test_csv_holds_every_number_in_full(tmp_path):
    rows = [row({"fid": 0.1 + 0.2, "parts": {"a": 1e-300}}, seed=k) for k in range(2)]
    rows += [row({"kid": 2.0}, guidance=guided(2.0), metric='a "b", c\nd')]
    page(write(tmp_path, rows))
    data = (tmp_path / "report" / "rows.csv").read_bytes().decode()
    lines = list(csv.DictReader(io.StringIO(data, newline="")))
    assert [line["metric"] for line in lines] == ["edm", "edm", 'a "b", c\nd']
    assert [line["seed"] for line in lines] == ["0", "1", "0"]
    assert float(lines[0]["values.fid"]) == 0.1 + 0.2
    assert float(lines[0]["values.parts.a"]) == 1e-300
    assert (lines[0]["values.kid"], lines[2]["values.kid"]) == ("", "2.0")
    assert json.loads(lines[2]["setting.guidance"]) == guided(2.0)
    assert lines[1]["provenance.code.commit"] == "c0ffee"
    assert lines[1]["reference.path"] == "/r.npz"


def test_rows_of_other_kinds(tmp_path):
    """A stack's, a model's, and those of no known form."""
    stack = [
        {
            "metric": "caption_accuracy",
            "values": {"all": 0.5 + seed, "attributes": {"shape": 0.25}, "count": 9},
            "stages": {"prior": {"checkpoint": 5}, "decoder": {"checkpoint": 7}},
            "seed": seed,
        }
        for seed in (0, 1)
    ]
    write(tmp_path, stack, "caption_accuracy")
    write(
        tmp_path, [{"metric": "zero_shot", "values": {"odd": 0.75}, "checkpoint": 3}], "zero_shot"
    )
    write(tmp_path, [{"score": 4, "of": {"x": [1, 2]}}, {"metric": "m", "values": {}}], "old")
    found = page(tmp_path)
    assert found.texts(0)[2] == ["2", "0.5", "1", "0.71"]
    assert found.texts(1) == [["seeds", "all", "attributes.shape"], ["2", "1", "0.25"]]
    assert found.texts(2) == [["seeds", "odd"], ["1", "0.75"]]
    assert found.texts(3) == [
        ["file", "line", "score", "of.x", "metric"],
        ["old", "1", "4", "[1, 2]", ""],
        ["old", "2", "", "", "m"],
    ]
    assert "stages.prior.checkpoint 5" in "".join(found.text)
    assert found.images == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"metric": ', r"edm.jsonl: line 2: damaged, no JSON .*; delete the line"),
        ("\udcff", r"edm.jsonl: line 2: damaged"),
        ("[1, 2]", r"edm.jsonl: line 2: \[1, 2\] is no row"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, message):
    write(tmp_path, [row({"fid": 1.0})])
    with (tmp_path / "evaluation" / "edm.jsonl").open("ab") as file:
        file.write(line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(ConfigError, match=message):
        report(None, tmp_path)
    assert not (tmp_path / "report").exists()


def test_without_rows_it_says_what_to_run(tmp_path):
    with pytest.raises(ConfigError, match="no rows to report on; run --mode=evaluate first"):
        report(None, tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two checkpoints and two seeds, evaluated."""
    path = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        toy_run.install(patch)
        toy_run.start(path, toy_run.make_config(), 10, 20)
        config = toy_run.make_config(every_checkpoint=True, seeds=(0, 1))
        job.evaluate(freeze(config), path)
    return path


def test_of_a_run(run, capsys):
    found = page(run)
    assert capsys.readouterr().out == f"{run / 'report' / 'index.html'}\n"
    values = [line["values"]["distance"] for line in toy_run.rows(run)]
    shown = [[float(x) for x in line[2:5]] for line in found.texts(0)[2:]]
    for k, line in enumerate(shown):
        pair = values[2 * k : 2 * k + 2]
        assert line[:2] == pytest.approx([min(pair), np.mean(pair)], rel=1e-4)
        assert line[2] == pytest.approx(np.std(pair, ddof=1), rel=0.05)
    assert [line[:2] for line in found.texts(0)[2:]] == [["10", "2"], ["20", "2"]]
    # The plot, then a grid of each checkpoint: 20 images of 8 px at 8 times, 8 in a row, 2 apart.
    sizes = [
        Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).size
        for source in found.images
    ]
    assert sizes[1:] == [(8 * 66 + 2, 3 * 66 + 2)] * 2
    text = "".join(found.text)
    name = toy_run.rows(run)[0]["samples"]
    assert f"checkpoint 10, seed 0: the first 20 samples of {name}" in text


def test_samples_that_are_gone_or_damaged(run):
    samples = Workdir(run).samples
    names = [line["samples"] for line in toy_run.rows(run)]
    assert first_images(samples, names[0]).shape == (24, 8, 8, 1)
    (samples / names[0]).rename(samples / "gone")
    (damaged, *_) = samples.glob(f"{names[2]}/chunks/000001.*.npz")
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:100])
    text = "".join(page(run).text)
    damaged.write_bytes(whole)
    (samples / "gone").rename(samples / names[0])
    assert f"the samples are not here any more (samples/{names[0]}/chunks)" in text
    assert f"chunk 1 of samples/{names[2]} is damaged" in text
    assert first_images(samples, names[0], 10).shape == (10, 8, 8, 1)
    (run / "chunks").symlink_to(samples / names[0] / "chunks")
    for name in ("..", f"../samples/{names[0]}", "/"):
        assert isinstance(first_images(samples, name), str)
    (run / "chunks").unlink()
