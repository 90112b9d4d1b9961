import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import metrics, peer

STANDIN = Path(__file__).with_name("metrics_standin.py")
NAMES = ("FID", "KID", "inception score", "precision, recall", "PRDC")


@pytest.fixture(scope="module")
def result():
    return metrics.measure(1000, 8, 2, False, ["clean-fid"], sys.executable, STANDIN)


def test_all_is_timed_and_has_a_value(result):
    assert tuple(result["ours"]["seconds"]) == tuple(result["ours"]["values"]) == NAMES
    assert min(result["ours"]["seconds"].values()) > 0
    assert result["ours"]["values"]["FID"] > 0
    precision, recall, density, coverage = result["ours"]["values"]["PRDC"]
    assert 0 < recall < precision < 1
    assert 0 < coverage < 1 < 2 * density


def test_the_other_program_is_given_the_same_features(result):
    """It answers with sums over the files, and seconds that fall from round to round."""
    theirs = result["peers"]["clean-fid"]
    generated, reference = metrics.features(1, 1000, 8), metrics.features(2, 1000, 8, scale=1.05)
    assert theirs["values"]["FID"] == pytest.approx(generated.sum(dtype=float), rel=1e-12)
    assert theirs["values"]["KID"] == pytest.approx(reference.sum(dtype=float), rel=1e-12)
    assert theirs["seconds"] == {"FID": 5.0, "KID": 10.0}
    assert theirs["about"] == {"package": "clean-fid"}


def test_the_table(result):
    lines = metrics.table(result).splitlines()
    assert lines[0] == "1,000 examples of 8 dimensions, best of 2; seconds and value"
    assert lines[1].split() == ["ours", "clean-fid"]
    assert [line[:24].strip() for line in lines[2:8]] == [*NAMES, "all"]
    ours = sum(result["ours"]["seconds"][name] for name in ("FID", "KID"))
    assert lines[8].startswith("clean-fid's 2 metrics: 15.00 s, ours")
    assert lines[8].endswith(f"{15 / ours:.1f} times faster")


def test_command_line_to_json(tmp_path, capsys):
    path = tmp_path / "out.json"
    metrics.main(["--count=1000", "--dims=32", "--more", f"--json={path}"])
    written = json.loads(path.read_text())
    assert written["peers"] == {}
    assert {"FID-infinity", "CMMD", "Vendi score"} <= set(written["more"]["values"])
    assert "FID-infinity" in capsys.readouterr().out
    kept, fid = written["more"]["values"]["FID, reference kept"], written["ours"]["values"]["FID"]
    assert kept == pytest.approx(fid, rel=1e-9)


def test_features_have_the_moments_of_inceptions():
    x = metrics.features(0, 4000, 96).astype(np.float64)
    assert x.min() == 0
    assert (x.mean(0) ** 2).sum() == pytest.approx(264 * 96 / 2048, rel=0.05)
    assert x.var(0).sum() == pytest.approx(225 * 96 / 2048, rel=0.05)
    values = np.linalg.eigvalsh(np.cov(x.T))
    assert values[-1] > 20 * values[0] > 0


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--against=diffusers", "--against=diffusers: allowed are torch-fidelity,clean-fid"),
        ("--count=999", "--count must be at least 1000"),
        ("--against=clean-fid", "--against=clean-fid: RuntimeError: broken"),
    ],
)
def test_mistakes(monkeypatch, capsys, flag, message):
    def broken(*_):
        raise peer.PeerError("--against=clean-fid: RuntimeError: broken")

    monkeypatch.setattr(metrics, "Peer", broken)
    with pytest.raises(SystemExit):
        metrics.main(["--dims=2", flag])
    assert message in capsys.readouterr().err


def test_a_package_that_is_not_there():
    """Nothing here has torch-fidelity: the program itself says so, in the peer's words."""
    job = {"package": "torch-fidelity", "folder": "/nowhere"}
    message = "--against=torch-fidelity: ModuleNotFoundError.*install torch and torch-fidelity"
    with pytest.raises(peer.PeerError, match=message):
        peer.Peer(sys.executable, job, metrics.PROGRAM, "torch-fidelity")
