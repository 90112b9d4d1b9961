import subprocess
import sys
import threading
import time

from training.exit_codes import RETRY
from training.watchdog import Watchdog


def watched(limit, doing):
    ended = threading.Event()
    codes = []

    def end(code):
        codes.append(code)
        ended.set()

    return Watchdog(limit, doing, "process 3 of 8 on host", end), ended, codes


def test_ends_a_process_that_makes_no_progress(capsys):
    watchdog, ended, codes = watched(0.2, lambda: "data")
    watchdog.beat(41)
    assert ended.wait(10)
    assert codes == [RETRY]
    said = capsys.readouterr().err
    assert "process 3 of 8 on host made no progress" in said
    assert "after step 41, in its part 'data'" in said
    assert "config.train.stall_seconds = 0.2" in said


def test_progress_and_compilation_keep_it_quiet():
    watchdog, ended, _ = watched(0.5, lambda: "step")
    for step in range(10):
        watchdog.beat(step)
        assert not ended.wait(0.1)
    watchdog.close()
    compiling, ended, _ = watched(0.2, lambda: "compile")
    assert not ended.wait(1.0)
    compiling.close()


def test_ends_a_process_in_which_a_library_holds_the_lock():
    # usleep by ctypes.PyDLL keeps Python's lock, as a library may that waits for another thread.
    program = """if True:
        import ctypes, time
        from training.watchdog import Watchdog
        watchdog = Watchdog(0.5, lambda: "step")
        time.sleep(0.3)
        ctypes.PyDLL(None).usleep(60_000_000)
    """
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "most recent call first" in done.stderr
    assert time.monotonic() - start < 50


def test_zero_is_never():
    before = threading.active_count()
    _, ended, _ = watched(0.0, lambda: "data")
    assert threading.active_count() == before
    time.sleep(0.05)
    assert not ended.is_set()
