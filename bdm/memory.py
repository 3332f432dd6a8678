import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Let glibc keep the memory that one step frees for the next one, in place of giving it back to the system.

    Steps allocate and free the same megabytes over and over; having them mapped anew each time can cost several times
    the arithmetic, most of all in virtual machines. Does nothing outside Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    allocator = getattr(ctypes.CDLL(None), "mallopt", None)
    if allocator is not None:
        allocator(M_TRIM_THRESHOLD, 2**30)
        allocator(M_MMAP_THRESHOLD, 2**25)
