"""The hang-up watch, as Linux has it and with the rules of macOS."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
import xnu

from akidb_sidecar import _hang_up
from akidb_sidecar._hang_up import HangUp

if TYPE_CHECKING:
    from collections.abc import Iterator

SOON = 5.0


@pytest.fixture(params=["poll", "kqueue"])
def _system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "poll" and hasattr(select, "kqueue"):
        pytest.skip("macOS's `poll` does not tell of a hang-up alone, and is not used")
    if request.param == "kqueue" and not hasattr(select, "kqueue"):
        monkeypatch.setattr(_hang_up, "select", xnu.SELECT)


pytestmark = pytest.mark.usefixtures("_system")


@pytest.fixture(params=["socket", "pipe"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """Return the descriptor that is watched, and the other end's, which a test closes."""
    if request.param == "socket":
        ours, theirs = (end.detach() for end in socket.socketpair())
    else:
        ours, theirs = os.pipe()
    yield ours, theirs
    os.close(ours)


def test_nothing_comes_while_the_other_end_is_held(ends: tuple[int, int]) -> None:
    ours, theirs = ends
    started = time.monotonic()
    assert not HangUp(ours).comes_within(0.1)
    assert 0.09 < time.monotonic() - started < SOON
    os.close(theirs)


def test_it_comes_at_once_when_the_other_end_is_closed(ends: tuple[int, int]) -> None:
    ours, theirs = ends
    hang_up = HangUp(ours)
    threading.Timer(0.1, os.close, (theirs,)).start()
    started = time.monotonic()
    assert hang_up.comes_within(60)
    assert time.monotonic() - started < SOON
    assert hang_up.comes_within(60)


def test_it_comes_where_the_other_end_was_closed_before(ends: tuple[int, int]) -> None:
    ours, theirs = ends
    os.close(theirs)
    assert HangUp(ours).comes_within(60)


def test_data_is_no_hang_up_and_is_left_to_the_reader(ends: tuple[int, int]) -> None:
    ours, theirs = ends
    hang_up = HangUp(ours)
    os.write(theirs, b"first")
    started, spent = time.monotonic(), time.process_time()
    assert not hang_up.comes_within(0.2)
    assert 0.19 < time.monotonic() - started < SOON
    assert time.process_time() - spent < 0.1, "it waits, it does not spin"
    os.write(theirs, b" and second")
    assert not hang_up.comes_within(0.1)
    os.close(theirs)
    assert hang_up.comes_within(60)
    assert os.read(ours, 100) == b"first and second"


def test_a_descriptor_that_is_closed_has_nobody_at_its_other_end() -> None:
    nobody = 60_000  # a number so large that nothing opened meanwhile gets it
    assert HangUp(nobody).comes_within(60)


def test_a_device_never_hangs_up() -> None:
    with open(os.devnull, "rb") as device:  # noqa: PTH123 - a device
        assert not HangUp(device.fileno()).comes_within(0.05)
