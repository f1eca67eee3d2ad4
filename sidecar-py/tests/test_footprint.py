"""What macOS says of a process's memory, from a library that is made up; the real one needs a Mac."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

import pytest

from akidb_sidecar import _footprint

OFFSET = 72
"""Of ``ri_phys_footprint`` in ``struct rusage_info_v0``: after a UUID of 16 bytes and seven of 8 bytes."""


class FakeSystem:
    """A library with macOS's function."""

    def __init__(self, answer: int, footprint: int) -> None:
        self._answer, self._footprint = answer, footprint

    def proc_pid_rusage(self, process: int, flavor: int, buffer: Any) -> int:
        assert (process, flavor) == (os.getpid(), 0)
        address = ctypes.cast(buffer, ctypes.c_void_p).value
        assert address is not None
        ctypes.c_uint64.from_address(address + OFFSET).value = self._footprint
        return self._answer


def test_the_physical_footprint_is_read_from_its_place() -> None:
    assert _footprint.asked(FakeSystem(0, 5 << 30)) == 5 << 30
    assert ctypes.sizeof(_footprint._ResourceUsage) == 96, "the system writes as much as it has"


def test_a_system_that_does_not_tell_is_no_error() -> None:
    assert _footprint.asked(FakeSystem(-1, 5 << 30)) is None
    assert _footprint.asked(object()) is None


@pytest.mark.skipif(sys.platform != "darwin", reason="only macOS has a physical footprint")
def test_macos_tells_more_than_a_few_megabytes() -> None:
    told = _footprint.physical()
    assert told is not None
    assert 5_000_000 < told < 1 << 40


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has a physical footprint")
def test_elsewhere_what_is_resident_is_enough() -> None:
    assert _footprint.physical() is None
