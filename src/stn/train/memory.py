"""What becomes of the memory that a training step frees."""

import ctypes

MIB = 2**20
# Parameters of malloc.h, by number: TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX.
KEEP = {-1: 2**31 - 1, -2: 64 * MIB, -4: 0}
# What glibc adapts itself to in a process that frees tensors of 32 MiB and more.
RETURN = {-1: 64 * MIB, -2: MIB // 8, -3: 32 * MIB, -4: 65536}


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed for the next step, in this process, from now on. Elsewhere it does nothing.

    By default it hands every large tensor back to the kernel, which gives it out again page by page, zeroed: on the CPU
    a sixth to a quarter of a step of the networks with convolutions. No number depends on it.
    """
    _mallopt(KEEP)


def return_freed_memory() -> None:
    """As in a process that never called `keep_freed_memory`: for measurements."""
    if _mallopt(RETURN):
        ctypes.CDLL(None).malloc_trim(0)


def _mallopt(parameters: dict[int, int]) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(number, value) for number, value in parameters.items())
