"""What becomes of the memory that a training step frees."""

import ctypes

# malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
TOP_PAD_BYTES = 64 * 2**20


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed for the next step, in this process, from now on. Elsewhere it does nothing.

    By default it hands every large tensor back to the kernel, which gives it out again page by page, zeroed: on the CPU
    a sixth to a third of a step of the networks with convolutions. No number depends on it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, TOP_PAD_BYTES)
