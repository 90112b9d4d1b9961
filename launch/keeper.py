"""Runs one command, and leaves nothing of it behind, whoever dies first.

    python keeper.py PARENT COMMAND...

Stands between the supervisor and a process of main.py. On Linux the kernel sends a signal to a
process whose parent has died (PR_SET_PDEATHSIG), also where the parent was killed with SIGKILL and
could do nothing itself. The supervisor's death reaches this keeper as END, upon which it kills the
process group of its command; that takes along the command's own children, such as the workers that
load data, which a death signal of the command alone would leave running. The keeper's death kills
the command. The standard library alone is imported: this must start at once.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys

# To a keeper: kill the command and all that it has started.
END = signal.SIGHUP
# From the keeper to its command, as they come.
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1


def die_with(parent: int, number: int) -> None:
    """Asks for a signal when the parent ends; ends now where it has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:
        os._exit(1)


def kill_group(group: int) -> None:
    """Kills all processes of a group that are left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def main(parent: int, command: list[str]) -> None:
    """Runs the command to its end, then ends as it did, by status or by signal."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {END, *PASSED_ON})
    die_with(parent, END)
    keeper = os.getpid()
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        die_with(keeper, signal.SIGKILL)
        # Python ignores these; what it starts should not.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {END, *PASSED_ON})
        try:
            os.execvp(command[0], command)
        except OSError as error:
            print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
            os._exit(127)
    with contextlib.suppress(OSError):
        os.setpgid(child, child)  # by both, as either may be first
    for number in PASSED_ON:
        signal.signal(number, lambda number, _: os.kill(child, number))
    signal.signal(END, lambda *_: kill_group(child))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {END, *PASSED_ON})
    # Not reaped yet, so that its number is nobody else's while signals may still be passed on.
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    signal.pthread_sigmask(signal.SIG_BLOCK, {END, *PASSED_ON})
    kill_group(child)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        os._exit(os.WEXITSTATUS(status))
    number = os.WTERMSIG(status)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the command has left its own
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
