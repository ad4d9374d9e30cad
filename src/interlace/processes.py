"""Processes of ours that must not outlive us."""

import ctypes
import signal

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # opened here: a forked child should not load libraries


def die_with_parent() -> None:
    """Let the kernel end this process (SIGTERM) when its parent dies, however that happens."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
