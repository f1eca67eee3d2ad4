#!/usr/bin/env python3
"""Runs a script or a module where ``select`` behaves as on macOS: ``xnu.py (SCRIPT | -m MODULE) ARGUMENTS``.

``poll`` registers nothing for a descriptor of which no event is asked, as XNU does, and there is a
``kqueue``, made of Linux's ``epoll``, which has the same two things: edges, and the end of the other side.
"""

from __future__ import annotations

import errno
import os
import runpy
import select
import stat
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from akidb_sidecar import _hang_up

LINUX: Any = select
POLL = select.poll
KQ_FILTER_READ, KQ_EV_ADD, KQ_EV_CLEAR, KQ_EV_EOF = -1, 1, 0x20, 0x8000


class Poll:
    """XNU's, which has no events where none are asked for."""

    def __init__(self) -> None:
        self._poll = POLL()

    def register(self, descriptor: int, events: int) -> None:
        if events:
            self._poll.register(descriptor, events)

    def poll(self, milliseconds: float | None = None) -> list[tuple[int, int]]:
        return self._poll.poll(milliseconds)


class Event(NamedTuple):
    """A change, or what has happened."""

    ident: int
    filter: int
    flags: int


class Kqueue:
    """Of descriptors that are read."""

    def __init__(self) -> None:
        self._epoll = LINUX.epoll()

    def control(self, changes: list[Event] | None, most: int, seconds: float | None = None) -> list[Event]:
        for change in changes or []:
            assert (change.filter, change.flags) == (KQ_FILTER_READ, KQ_EV_ADD | KQ_EV_CLEAR)
            if stat.S_ISCHR(os.fstat(change.ident).st_mode):
                raise OSError(errno.EINVAL, "Invalid argument")
            self._epoll.register(change.ident, LINUX.EPOLLIN | LINUX.EPOLLRDHUP | LINUX.EPOLLET)
        if not most:
            return []
        ends = LINUX.EPOLLHUP | LINUX.EPOLLRDHUP
        return [
            Event(descriptor, KQ_FILTER_READ, KQ_EV_EOF if events & ends else 0)
            for descriptor, events in self._epoll.poll(seconds, most)
        ]


SELECT = SimpleNamespace(
    poll=Poll,
    kqueue=Kqueue,
    kevent=Event,
    KQ_FILTER_READ=KQ_FILTER_READ,
    KQ_EV_ADD=KQ_EV_ADD,
    KQ_EV_CLEAR=KQ_EV_CLEAR,
    KQ_EV_EOF=KQ_EV_EOF,
)
"""What the hang-up watch sees of the module there."""


def install() -> None:
    """Give everybody that ``poll``, and the hang-up watch all of it."""
    LINUX.poll = Poll
    watch: Any = _hang_up
    watch.select = SELECT


if __name__ == "__main__":
    install()
    sys.argv = sys.argv[1:]
    if sys.argv[0] == "-m":
        sys.argv = sys.argv[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(sys.argv[0]).parent)
        runpy.run_path(sys.argv[0], run_name="__main__")
