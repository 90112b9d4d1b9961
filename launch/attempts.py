"""Whether a run that has ended starts again, and when.

Under SLURM this is asked by the batch script, which has no other memory from one start to the next:

    python -m launch.attempts begin FILE WORKDIR
    python -m launch.attempts end FILE STATUS --retries=10    # status 0: start again
"""

import argparse
import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

from etils import epath

from training.exit_codes import DONE, FAILED, MISTAKE, RETRY

NAMES = {DONE: "done", MISTAKE: "a mistake", FAILED: "failed", RETRY: "to be started again"}
LONGEST_DELAY = 300.0


def describe(status: int) -> str:
    """A status in words. Negative: ended by that signal; above 128: as a shell tells of one."""
    number = -status if status < 0 else status - 128
    if status < 0 or status > 128:
        try:
            return f"signal {signal.Signals(number).name}"
        except ValueError:
            pass
    return f"status {status} ({NAMES.get(status, 'a crash')})"


def checkpoints(workdir: str) -> set[str]:
    """The finished checkpoints of a run, or of all stages of a stack."""
    root = epath.Path(workdir)
    folders = [root / "checkpoints", *root.glob("*/checkpoints")]
    steps = (step for folder in folders if folder.exists() for step in folder.iterdir())
    return {os.fspath(step) for step in steps if step.name.isdigit()}


@dataclasses.dataclass
class Attempts:
    """Counts starts that brought no newer checkpoint."""

    workdir: str
    retries: int
    # Whether RETRY, too, is tried no more than `retries` times without progress.
    bounded: bool = False
    fruitless: int = 0
    seen: set[str] = dataclasses.field(default_factory=set)

    def begin(self) -> None:
        """Takes note of the checkpoints that there are."""
        self.seen |= self._checkpoints()

    def again(self, status: int) -> tuple[bool, str]:
        """Whether to start again after this status, and why, in half a sentence."""
        now = self._checkpoints()
        if now - self.seen:
            self.fruitless = 0
        self.seen |= now
        if status == DONE:
            return False, "done"
        if status in (MISTAKE, FAILED):
            return False, "starting again would not help"
        self.fruitless += 1
        tries = f"try {self.fruitless} of {self.retries} without a newer checkpoint"
        if status == RETRY and not self.bounded:
            return True, "its work is safe"
        if self.fruitless > self.retries:
            return False, f"{self.retries} tries brought no newer checkpoint"
        return True, tries

    def delay(self, first: float) -> float:
        """Seconds before the next start: doubled with each fruitless one, up to five minutes."""
        return min(LONGEST_DELAY, first * 2.0 ** min(max(self.fruitless - 1, 0), 30))

    def _checkpoints(self) -> set[str]:
        try:
            return checkpoints(self.workdir)
        except Exception as error:
            # A bucket that does not answer is no reason to give up a run.
            print(f"launch: {self.workdir} cannot be read ({error})", file=sys.stderr)
            return set()


def main(argv: list[str]) -> int:
    """For batch scripts: 0 where the run is to start again, else 1."""
    parser = argparse.ArgumentParser(prog="python -m launch.attempts", allow_abbrev=False)
    parser.add_argument("event", choices=("begin", "end"))
    parser.add_argument("file", type=Path)
    parser.add_argument("what", help="begin: the work directory; end: the exit status")
    parser.add_argument("--retries", type=int, default=10)
    options = parser.parse_args(argv)
    if options.event == "begin":
        if not options.file.exists():
            attempts = Attempts(options.what, 0)
            attempts.begin()
            _save(attempts, options.file)
        return 0
    stored = json.loads(options.file.read_text())
    attempts = Attempts(
        stored["workdir"], options.retries, True, stored["fruitless"], set(stored["seen"])
    )
    again, why = attempts.again(int(options.what))
    _save(attempts, options.file)
    what = "starts again" if again else "ends"
    print(f"launch: {describe(int(options.what))}; {what}: {why}", file=sys.stderr)
    return 0 if again else 1


def _save(attempts: Attempts, file: Path) -> None:
    content = {"workdir": attempts.workdir, "fruitless": attempts.fruitless}
    file.write_text(json.dumps(content | {"seen": sorted(attempts.seen)}))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
