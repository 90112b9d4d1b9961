"""Keeps the processes of one run going on this host: starts, watches, stops and starts again."""

import contextlib
import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from launch import keeper
from launch.attempts import Attempts, describe
from training.exit_codes import DONE, FAILED, MISTAKE, RETRY


@dataclasses.dataclass(frozen=True)
class Command:
    """One process: what to run, and its environment on top of this one's."""

    argv: list[str]
    env: dict[str, str]


def worst(statuses: list[int]) -> int:
    """The status that says most about why processes ended: of mistakes before that of crashes."""
    for status in (MISTAKE, FAILED, RETRY):
        if status in statuses:
            return status
    return next((status for status in statuses if status != DONE), DONE)


class Supervisor:
    """All processes of one run. `poll` does what is due, and says at last how the run ended.

    Processes that share collectives are of no use without each other: when one ends badly the
    others are stopped, and all start again.
    """

    def __init__(
        self,
        commands: Callable[[], list[Command]],
        attempts: Attempts,
        logs: Path,
        *,
        say: Callable[[str], None],
        show: bool = True,
        grace: float = 15.0,
        delay: float = 5.0,
    ):
        """`poll` starts the processes.

        Args:
            commands: makes the commands of one start, with a free port each time.
            attempts: decides on starting again.
            logs: directory for what the processes print.
            say: takes each message.
            show: whether process 0's output goes to the terminal, too.
            grace: seconds from SIGTERM to SIGKILL for those that outlive another's crash.
            delay: seconds before the first start again.
        """
        self._commands, self._attempts, self._logs = commands, attempts, logs
        self._say, self._show, self._grace, self._delay = say, show, grace, delay
        self._processes: list[subprocess.Popen] = []
        self._ended: dict[int, int] = {}
        self._starts = 0
        self._start_at, self._kill_at = 0.0, None
        self._cause: int | None = None
        self._stopping = False
        self._shown = 0
        attempts.begin()

    def poll(self) -> int | None:
        """Looks at the processes; the exit status of the run once it has ended, else None."""
        if not self._processes:
            if self._stopping:
                return self._cause if self._cause is not None else RETRY
            if time.monotonic() >= self._start_at:
                self._start()
            return None
        self._copy_output()
        news = self._news()
        if len(self._ended) == len(self._processes):
            return self._all_ended()
        bad = [status for status in news if status != DONE]
        if bad and self._cause is None and not self._stopping:
            self._cause = worst(bad)
            self._stop_rest()
        if self._kill_at is not None and time.monotonic() > self._kill_at:
            self._say(f"{self._left()} did not end in {self._grace:g} s: killed")
            self.kill()
        return None

    def terminate(self) -> None:
        """Passes SIGTERM on, so that the run saves; it is not started again."""
        self._stopping = True
        if self._processes:
            self._say(f"SIGTERM goes to {self._left()}; once more kills")
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kills all processes and their children."""
        self._kill_at = None
        self._signal(keeper.END)

    def _start(self) -> None:
        self._starts += 1
        self._ended, self._cause, self._kill_at = {}, None, None
        self._began = time.monotonic()
        self._logs.mkdir(parents=True, exist_ok=True)
        for index, command in enumerate(self._commands()):
            path = self._log(index)
            head = f"--- start {self._starts} of process {index}, {time.strftime('%F %T')}: "
            with path.open("ab", buffering=0) as log:
                # A full disk under a log is no reason to stop a run.
                with contextlib.suppress(OSError):
                    log.write(f"{head}{shlex.join(command.argv)}\n".encode())
                if index == 0:
                    self._shown = log.tell()
                kept = [sys.executable, keeper.__file__, str(os.getpid()), *command.argv]
                self._processes.append(
                    subprocess.Popen(
                        kept,
                        env=os.environ | {"PYTHONUNBUFFERED": "1"} | command.env,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )

    def _news(self) -> list[int]:
        """Statuses of the processes that have ended since the last time; each is told of."""
        news = []
        for index, process in enumerate(self._processes):
            status = process.poll()
            if status is None or index in self._ended:
                continue
            self._ended[index] = status
            news.append(status)
            if status != DONE or len(self._processes) == 1:
                after = f"after {time.monotonic() - self._began:.0f} s"
                self._say(
                    f"process {index} ended by {describe(status)} {after}; "
                    f"its log is {self._log(index)}"
                )
        return news

    def _stop_rest(self) -> None:
        self._say(f"SIGTERM goes to {self._left()}, SIGKILL in {self._grace:g} s")
        self._signal(signal.SIGTERM)
        self._kill_at = time.monotonic() + self._grace

    def _all_ended(self) -> int | None:
        """Every process has ended: decides what is next."""
        self._copy_output()
        statuses = list(self._ended.values())
        self._processes = []
        final = worst([status for status in statuses if status in (MISTAKE, FAILED)])
        if self._stopping:
            # One that was cut short tells more than those that saved.
            crashed = [status for status in statuses if status not in (DONE, RETRY)]
            return final or worst(crashed or statuses)
        status = final or (self._cause if self._cause is not None else worst(statuses))
        again, why = self._attempts.again(status)
        if not again:
            if status != DONE:
                self._say(f"ends with {describe(status)}: {why}")
            return status
        wait = self._attempts.delay(self._delay)
        self._say(f"all start again in {wait:g} s: {why}")
        self._start_at = time.monotonic() + wait
        self._cause = status
        return None

    def _signal(self, number: int) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)

    def _left(self) -> str:
        left = [str(i) for i in range(len(self._processes)) if i not in self._ended]
        return f"process{'es' * (len(left) > 1)} {', '.join(left)}"

    def _log(self, index: int) -> Path:
        return self._logs / f"process-{index}.log"

    def _copy_output(self) -> None:
        """Brings what process 0 has written since to the terminal.

        From the file and not through a pipe: a terminal that stands still does not stop the run.
        """
        if not self._show:
            return
        with self._log(0).open("rb") as log:
            log.seek(self._shown)
            text = log.read()
        self._shown += len(text)
        if text:
            with contextlib.suppress(OSError):
                sys.stdout.buffer.write(text)
                sys.stdout.buffer.flush()
