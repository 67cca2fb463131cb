"""Memory of the process: keep large freed blocks instead of returning them to the system at every
free.
"""

from __future__ import annotations

import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names and numbers of <malloc.h>
LARGEST_MAPPED = (
    2**30,
    2**25,
)  # what to ask for; releases of glibc that refuse the first accept the second
LARGEST_KEPT = 2**31 - 1


def keep_large_blocks() -> bool:
    """Let glibc recycle large blocks within this process; True if it agreed.

    A tensor of more than 128 KiB is otherwise mapped afresh and handed back when it dies, and the
    page faults of a solver that makes a few of them per step can take as long as its arithmetic.
    Systems without ``mallopt`` (macOS, Windows, musl) are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mapped = any(mallopt(M_MMAP_THRESHOLD, size) for size in LARGEST_MAPPED)
    return bool(mapped and mallopt(M_TRIM_THRESHOLD, LARGEST_KEPT))


def return_free_blocks() -> bool:
    """Hand what is free back to the system, after something large that does not come again; True if
    there was any.
    """
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return False
    return bool(trim(0))
