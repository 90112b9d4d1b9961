import jax
import pytest

from training import processes
from training.components import ConfigError


@pytest.fixture
def started(monkeypatch):
    """Notes what JAX would be told."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append((a, k)))
    return calls


def test_explicit(started):
    processes.join("10.0.0.2:8476", 4, 3, heartbeat=20)
    options = {"cluster_detection_method": "deactivate", "heartbeat_timeout_seconds": 20}
    assert started == [(("10.0.0.2:8476", 4, 3), options)]


def test_detected(started):
    processes.join()
    assert started == [((), {"heartbeat_timeout_seconds": 100})]


def test_sigterm_is_caught_only_where_somebody_asks_for_it(started):
    name = "jax_enable_preemption_service"
    for caught in (False, True):
        processes.join("10.0.0.2:8476", 4, 3, preemption=caught)
        assert jax.config.values[name] is caught


def test_alone(started):
    processes.join("none")
    assert started == []


def test_without_a_cluster_auto_is_alone(capsys, monkeypatch):
    # JAX itself is asked; it would refuse, as the tests have used devices already.
    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)
    processes.join("auto")
    assert not jax.distributed.is_initialized()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("somewhere", 2, 0), "--coordinator=somewhere: must be auto, none, or host:port"),
        ((":80", 2, 0), "--coordinator=:80: must be"),
        (("a:80", 0, 0), "--processes=0"),
        (("a:80", 2, 2), "--process=2: which of the 2 processes this is, from 0 to 1"),
        (("a:80", 2, -1), "--process=-1"),
        (("auto", 2, -1), "are for --coordinator=host:port, not for --coordinator=auto"),
        (("none", 0, 1), "not for --coordinator=none"),
        (("auto", 0, -1, 0), "--heartbeat=0: seconds"),
    ],
)
def test_what_does_not_fit(started, arguments, message):
    with pytest.raises(ConfigError, match=message):
        processes.join(*arguments)
    assert started == []


def test_title_says_which():
    assert processes.title().startswith("process 0 of 1 on ")
    assert processes.first()
