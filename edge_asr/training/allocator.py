"""How the C library hands out memory while a model is trained on a CPU."""

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_LARGEST = 2**31 - 1


def keep_freed_memory() -> None:
    """Have glibc keep what the process frees, for its next step; elsewhere nothing happens.

    Otherwise it maps each large tensor anew, and the kernel fills its pages with zeros: a fifth to a third of
    a step of a small model. The process then keeps the most memory that it ever had.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, _LARGEST)
