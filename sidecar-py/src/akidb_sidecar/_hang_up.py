"""Whether somebody still holds the other end of a socket or a pipe; no byte is taken from who reads it.

Linux's ``poll`` tells of a hang-up when it is asked for no event at all. XNU's registers nothing then, and
with macOS 15.4 and later a hang-up alone is not reliable for sockets; there ``kqueue`` tells of it, along
with data, which is passed over.
"""

from __future__ import annotations

import errno
import select
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class HangUp:
    """The end of one descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._wait = _by_kqueue(descriptor) if hasattr(select, "kqueue") else _by_poll(descriptor)
        self._has_come = False

    def comes_within(self, seconds: float) -> bool:
        """Wait for it, for at most so long."""
        self._has_come = self._has_come or self._wait(seconds)
        return self._has_come


def _by_poll(descriptor: int) -> Callable[[float], bool]:
    poll = select.poll()
    poll.register(descriptor, 0)
    return lambda seconds: bool(poll.poll(1000 * seconds))


def _by_kqueue(descriptor: int) -> Callable[[float], bool]:
    bsd: Any = select  # these names are missing where this is not called
    queue = bsd.kqueue()
    # Edge-triggered: data that is not read yet must not wake the thread again and again.
    flags = bsd.KQ_EV_ADD | bsd.KQ_EV_CLEAR
    try:
        queue.control([bsd.kevent(descriptor, bsd.KQ_FILTER_READ, flags)], 0)
    except OSError as error:
        # Of a device, such as `/dev/null`, it knows nothing; Linux never tells of one either.
        return _at_once if error.errno == errno.EBADF else _never

    def wait(seconds: float) -> bool:
        end = time.monotonic() + seconds
        while True:
            events = queue.control(None, 1, max(0.0, end - time.monotonic()))
            if any(event.flags & bsd.KQ_EV_EOF for event in events):
                return True
            if time.monotonic() >= end:
                return False

    return wait


def _at_once(_seconds: float) -> bool:
    return True


def _never(seconds: float) -> bool:
    time.sleep(seconds)
    return False
