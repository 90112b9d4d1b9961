"""Files of weights from a server of this machine: fetched once, checked, refused."""

import hashlib
import http.server
import threading

import pytest

from evaluation import weights
from training.components import ConfigError

CONTENT = b"weights" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Publishes CONTENT; gives the paths that it was asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200 if self.path == "/w.pth" else 404)
            self.end_headers()
            self.wfile.write(CONTENT if self.path == "/w.pth" else b"")

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        url = f"http://127.0.0.1:{running.server_port}"
        known = {
            "net": weights.Published("net-w.pth", f"{url}/w.pth", DIGEST[:8], len(CONTENT)),
            "changed": weights.Published("changed.pth", f"{url}/w.pth", "0123abcd"),
            "gone": weights.Published("gone.pth", f"{url}/gone.pth", DIGEST),
        }
        monkeypatch.setattr(weights, "KNOWN", known)
        yield asked
        running.shutdown()
        thread.join()


def test_fetched_once(server, tmp_path):
    path = weights.locate("net")
    assert path == tmp_path / "cache/diffusion-weights/net-w.pth"
    assert path.read_bytes() == CONTENT
    assert weights.locate("net") == path
    assert server == ["/w.pth"]
    assert weights.sha256(path) == DIGEST


def test_order(server, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "net-w.pth").write_bytes(CONTENT)
    (tmp_path / "mine.pth").write_bytes(b"converted")
    assert weights.locate("net", directory=str(own)) == own / "net-w.pth"
    # Whatever it holds: the file was named.
    mine = tmp_path / "mine.pth"
    assert weights.locate("net", path=str(mine), directory=str(own)) == mine
    assert server == []
    (own / "net-w.pth").unlink()
    assert weights.locate("net", directory=str(own)).parent.name == "diffusion-weights"


def test_another_file_is_refused_with_both_checksums(server, tmp_path):
    with pytest.raises(ConfigError, match=rf"fetched: has sha256 {DIGEST}, .* has 0123abcd"):
        weights.locate("changed")
    assert list((tmp_path / "cache/diffusion-weights").iterdir()) == []
    (tmp_path / "net-w.pth").write_bytes(b"something else")
    other = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(ConfigError, match=rf"has sha256 {other}, .* has {DIGEST[:8]}"):
        weights.locate("net", directory=str(tmp_path))
    assert "/gone.pth" not in server


def test_what_to_bring_where_nothing_can_be_fetched(server, tmp_path, monkeypatch):
    target = tmp_path / "cache/diffusion-weights/gone.pth"
    message = (
        rf"gone\.pth is not here .*Not Found.*bring http://.*/gone\.pth and put it at {target}"
    )
    with pytest.raises(ConfigError, match=message) as caught:
        weights.locate("gone")
    assert "\n" not in str(caught.value)
    assert not list(target.parent.iterdir())
    closed = weights.Published("net-w.pth", "http://127.0.0.1:9/w.pth", DIGEST, 95_600_000)
    monkeypatch.setattr(weights, "KNOWN", {"net": closed})
    with pytest.raises(ConfigError, match=r"refused.*127\.0\.0\.1:9/w\.pth \(96 MB\)"):
        weights.locate("net")


def test_mistakes(server, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'gone'"):
        weights.locate("gon")
    with pytest.raises(ConfigError, match="no such directory"):
        weights.locate("net", directory=str(tmp_path / "none"))
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"bad\.pth: is neither"):
        weights.read(bad, dict)


def test_the_table():
    for known in weights.KNOWN.values():
        assert known.url.startswith("https://")
        assert len(known.checksum) >= 8
        assert set(known.checksum) <= set("0123456789abcdef")
        assert "/" not in known.file
