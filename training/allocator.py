"""The host's memory allocator, set for programs that compute on the CPU."""

import ctypes
import sys

import jax

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed, if JAX computes on the CPU.

    XLA takes the temporaries of a program anew at every call. By default glibc gives so large a
    block back when it is freed, and the next call pays for every page of it again. The price is
    that the process never shrinks. To be called before JAX has started its threads: one arena
    for all of them is an arena that is not given back, and glibc decides on it only once.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    mallopt(_ARENA_MAX, 1)
    if jax.default_backend() == "cpu":  # starts the threads
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
        mallopt(_TOP_PAD, 64 << 20)
