"""What a process that holds keys does first: nothing of its memory or its files is for others.

Invariant: called before the first key is read or made.
"""

from __future__ import annotations

import ctypes
import os
import resource

_PR_SET_DUMPABLE = 4


def harden() -> None:
    """Files 0600 and folders 0700 unless a caller says otherwise; no core dumps; no looking in by the same user.

    A limit of 0 on cores is not enough: the kernel ignores it where cores go to a program (core(5)). A process that
    is not dumpable leaves none anywhere, and neither another process of its user nor a debugger may read its memory;
    root may. Linux only: elsewhere the limit has to do.
    """
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        prctl = ctypes.CDLL(None).prctl
    except (AttributeError, OSError):
        return
    prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
