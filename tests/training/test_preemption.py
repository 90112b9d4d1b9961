import os
import signal
import threading

import jax
import pytest
from jax.experimental import multihost_utils

from training.preemption import Preemption


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_seen_after_the_step(number):
    before = signal.getsignal(number)
    preemption = Preemption()
    assert not preemption.reached()
    os.kill(os.getpid(), number)
    assert preemption.reached()
    # The next one does what it did before: it ends the program.
    assert signal.getsignal(number) == before
    preemption.close()


def test_processes_ask_with_a_number_that_never_comes_again(monkeypatch):
    # JAX stops all of them at one number; a stack's next stage begins at its own first step.
    asked = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda number: bool(asked.append(number))
    )
    for _ in range(2):
        stage = Preemption()
        assert not stage.reached()
        assert not stage.reached()
        stage.close()
    assert asked == list(range(asked[0], asked[0] + 4))


def test_closed_it_listens_no_longer():
    before = signal.getsignal(signal.SIGTERM)
    preemption = Preemption()
    assert signal.getsignal(signal.SIGTERM) != before
    preemption.close()
    assert signal.getsignal(signal.SIGTERM) == before


def test_in_another_thread_there_is_nothing_to_listen_with():
    # Signals reach the main thread alone; a job run in another one is stopped by its caller.
    made = []
    thread = threading.Thread(target=lambda: made.append(Preemption()))
    thread.start()
    thread.join()
    assert not made[0].reached()
