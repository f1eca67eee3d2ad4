"""The memory of this process, where what is resident of it leaves out a part: on macOS that of the GPU.

There the system counts the *physical footprint*: it is what Activity Monitor shows, and what decides which
process has to go when memory is short.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

_RUSAGE_INFO_V0 = 0
_COUNTS = (
    "user_time",
    "system_time",
    "package_idle_wakeups",
    "interrupt_wakeups",
    "page_ins",
    "wired_size",
    "resident_size",
    "physical_footprint",
    "start",
    "exit",
)


class _ResourceUsage(ctypes.Structure):
    """``struct rusage_info_v0`` of ``<sys/resource.h>``."""

    _fields_ = [
        ("uuid", ctypes.c_uint8 * 16),
        *((name, ctypes.c_uint64) for name in _COUNTS),
    ]


def physical() -> int | None:
    """Return it in bytes; ``None`` where what is resident says it."""
    return asked(_system()) if sys.platform == "darwin" else None


@cache
def _system() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def asked(system: object) -> int | None:
    """Ask macOS's library; ``None`` where it does not answer."""
    ask = getattr(system, "proc_pid_rusage", None)
    usage = _ResourceUsage()
    if ask is None or ask(os.getpid(), _RUSAGE_INFO_V0, ctypes.byref(usage)) != 0:
        return None
    return int(usage.physical_footprint)
