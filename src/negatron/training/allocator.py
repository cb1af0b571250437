"""How the C library keeps memory that torch gives back: an edge to glibc, of use on CPUs only.

By default glibc maps every large block anew and gives it back when it is freed, so each step of a training touches all of its activations
for the first time again, one page fault for every 4 KiB. Measured on CPUs: 3 % of the processor's time (two layers of width
384) to 10 % (docs/notebook.md).
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Numbers of the parameters in glibc's malloc.h."""
LARGE = 2**31 - 1


def keep_freed_memory() -> bool:
    """Asks glibc to keep freed memory in the process for the next step; True where it agreed.

    The process then stays as large as its largest step, until it ends. Changes no result. Another C library: False, nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, LARGE))
