"""How the program ends, for whoever starts it again. Needs no JAX.

Any other status (a crash, a signal) may be worth another try, but not for ever.
"""

# Finished.
DONE = 0
# Config, command line or data are wrong: starting again does not help.
MISTAKE = 2
# The training itself failed (a loss that stays NaN): starting again does not help.
FAILED = 3
# Stopped with its work safe: preempted, hung, disk full. Start the same command again. EX_TEMPFAIL
# of sysexits.h.
RETRY = 75


class TrainingFailed(RuntimeError):
    """The run cannot go on; the message says since which step and what is safe. Exit FAILED."""


class TryAgain(RuntimeError):
    """The run stopped, and goes on when it is started again. Exit RETRY."""


class Preempted(TryAgain):
    """The same, and every process of the run raises it at the same step."""
