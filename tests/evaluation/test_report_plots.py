"""The plots of a report: their lines, and which files there are."""

import pytest

from evaluation import report_plots
from evaluation.report import report
from tests.evaluation.written_rows import guided, row, tables, write


def lines(path, rows, axis, *values):
    (table,) = tables(path, rows)
    (found,) = (a for a in report_plots.AXES if a.name == axis)
    return {line.label: line for line in report_plots.lines(table, found, *values)}


def test_lines_over_checkpoints(tmp_path):
    rows = [
        row({"fid": step / 100 + seed}, step=step, ema=ema, seed=seed)
        for step in (2000, 1000)
        for ema in ("slow", "fast")
        for seed in (0, 2)
    ]
    found = lines(tmp_path, rows, "checkpoint", "fid")
    assert found.keys() == {"ema slow", "ema fast"}
    line = found["ema slow"]
    assert line.x == (1000, 2000)
    assert [(s.least, s.mean, s.greatest) for s in line.spreads] == [(10, 11, 12), (20, 21, 22)]
    assert lines(tmp_path, rows[4:], "checkpoint", "fid") == {}


def test_lines_over_guidance_and_calls(tmp_path):
    rows = [
        row({"fid": scale, "recall": 1 / scale}, guidance=guidance, steps=steps)
        for scale, guidance in (
            (3.0, guided(3.0, rescale=0.7)),
            (1.5, guided(1.5, rescale=0.7)),
            (2.0, ["classifier_free(w=1.0, rescale=0.7)"]),
        )
        for steps in (10, 20)
    ]
    rows += [row({"fid": 7.0}), row({"fid": 6.0}, steps=20)]
    found = lines(tmp_path, rows, "guidance", "fid")
    assert found.keys() == {"steps 10", "steps 20"}
    for line in found.values():
        assert line.x == (1.5, 2.0, 3.0)
        assert [s.mean for s in line.spreads] == [1.5, 2.0, 3.0]
    found = lines(tmp_path, rows, "calls", "fid")
    assert found["unguided"].x == (10, 20)
    assert found["classifier_free(scale=3.0, rescale=0.7)"].x == (20, 40)
    # The best one first: with many, these are drawn.
    assert next(iter(found)) == "classifier_free(scale=1.5, rescale=0.7)"


def test_values_that_guidance_trades(tmp_path):
    names = ("precision", "recall", "fid", "inception_score")
    rows = [
        row(dict(zip(names, (p, r, 5.0, 9.0), strict=True)), guidance=guided(scale))
        for scale, p, r in ((1.0, 0.5, 0.6), (2.0, 0.7, 0.4), (3.0, 0.6, 0.3))
    ]
    (table,) = tables(tmp_path, rows)
    assert report_plots.pairs(table) == [("recall", "precision"), ("fid", "inception_score")]
    (line,) = lines(tmp_path, rows, "guidance", "recall", "precision").values()
    assert [(x.mean, y.mean) for x, y in line.spreads] == [(0.6, 0.5), (0.4, 0.7), (0.3, 0.6)]
    assert report_plots.front([(0.6, 0.5), (0.4, 0.7), (0.3, 0.6)], (1, 1)) == [True, True, False]
    assert report_plots.front([(2.0, 5.0), (1.0, 5.0), (1.0, 5.0)], (-1, 1)) == [False, True, True]
    report(None, tmp_path)
    pictures = {path.name for path in (tmp_path / "report").glob("*.png")}
    assert pictures == {"edm-1-guidance.png", "edm-1-pareto.png"}
    # A plot that a later report has not is taken away; other files stay.
    (tmp_path / "report" / "priors.png").write_bytes(b"")
    write(tmp_path, rows[:1])
    report(None, tmp_path)
    assert {path.name for path in (tmp_path / "report").glob("*.png")} == {"priors.png"}


@pytest.mark.parametrize(
    ("guidance", "scale"),
    [
        ([], None),
        (None, None),
        ("classifier_free(scale=2.0)", None),
        (["not a call ("], None),
        (["classifier_free(negative=True)"], None),
        (["classifier_free(w=0.5)"], (1.5, "classifier_free")),
        (["a", "autoguidance(scale=2, workdir='w')"], (2, "a + autoguidance(workdir='w')")),
    ],
)
def test_scale_of_guidance(guidance, scale):
    assert report_plots.guidance_scale(guidance) == scale


def test_many_settings_are_cut_to_the_best(tmp_path):
    rows = [
        row({"fid": 100.0 - k, "kid": k / 7}, steps=10 + k, step=step)
        for k in range(12)
        for step in (1, 2)
    ]
    (table,) = tables(tmp_path, rows)
    caption, _ = report_plots.plots(table)["checkpoint"]
    assert caption == "Over checkpoint, steps; the best 10 of 12 settings."
    kept = report_plots._chosen([report_plots.lines(table, report_plots.AXES[0], "fid")])
    assert kept == [
        f"steps {steps}, network calls per image {steps}" for steps in range(21, 11, -1)
    ]
