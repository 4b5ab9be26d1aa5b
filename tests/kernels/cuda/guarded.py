"""numpy arrays whose end, or beginning, touches a page that nobody may read or write."""

import ctypes
import mmap
from typing import Any

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)
_PROT_NONE = 0


def guarded(array: Any, slack_bytes: int = 0, at_start: bool = False) -> Any:
    """A copy of `array` that ends `slack_bytes` before a forbidden page, or begins so far behind one."""
    array = np.ascontiguousarray(array)
    page = mmap.PAGESIZE
    inner = max(page, -(-(array.nbytes + slack_bytes) // page) * page)
    memory = mmap.mmap(-1, inner + 2 * page)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for forbidden in (base, base + page + inner):
        if _libc.mprotect(ctypes.c_void_p(forbidden), ctypes.c_size_t(page), _PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    start = page + (slack_bytes if at_start else inner - slack_bytes - array.nbytes)
    copy = np.frombuffer(memory, np.uint8, array.nbytes, start).view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
