import os
import signal
import threading

import pytest

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
