"""The process's heap on the CPU's side."""

import ctypes
import sys


def trim_heap() -> None:
    """Gives the heap's free pages back to the system, where the C library can.

    glibc gives back by itself what lies at the heap's end, and keeps the holes before it.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
