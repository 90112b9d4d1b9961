"""The program that checks an installation finds what is off, and says so."""

import numpy as np

from evaluation import metrics, selftest


def test_numbers_that_are_right(monkeypatch, capsys, tmp_path):
    """Inception's are in tests/evaluation/extractors, which take the same program."""
    monkeypatch.setattr(selftest, "inception", lambda: iter(()))
    assert selftest.main(["--weights", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "ok    Frechet distance, few generated" in out
    assert "ok    resize antialiased, 45 to 32 px" in out
    assert "absent  inception: weights-inception-2015-12-05-6726825d.pth" in out
    assert out.endswith("all as it should be\n")


def test_numbers_that_are_off(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(selftest, "inception", lambda: iter(()))
    monkeypatch.setattr(selftest, "resizes", lambda: iter([selftest.Check("nan", np.nan, 1.0)]))
    kid = metrics.kid
    monkeypatch.setattr(metrics, "kid", lambda *pair, **_: kid(*pair[::-1], 20, 300))
    (tmp_path / "weights-inception-2015-12-05-6726825d.pth").write_bytes(b"another file")
    assert selftest.main(["--weights", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "WRONG nan: nan" in out
    assert "WRONG KID" in out
    assert "WRONG   inception" in out
    assert out.endswith("3 wrong\n")


def test_without_the_stored_numbers(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(selftest, "GOLDEN", tmp_path / "nowhere")
    assert selftest.main([]) == 2
    assert "nowhere: the stored numbers are not there" in capsys.readouterr().err
