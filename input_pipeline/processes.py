"""Worker processes that do not outlive the program."""

import multiprocessing.connection
import os
import threading


def end_with_parent() -> None:
    """Makes a worker process end when the process that started it does, even by SIGKILL."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()
