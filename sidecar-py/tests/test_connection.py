"""The socket: frames in pieces, frames in lumps, and the end of the gateway."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from conftest import END_SECONDS, ON_ANY_SYSTEM, TESTS, WAIT_SECONDS, Child, embed, golden_frames, read_frame

from akidb_sidecar import _connection, _protocol
from akidb_sidecar._errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SCRIPT = TESTS / "connection_child.py"
BIG = _protocol.Fatal(code="big", message="x" * 3_000_000)


class GatewayGoneError(Exception):
    """Raised in these tests where a worker would end."""


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[_connection.Connection, socket.socket]]:
    """Return a connection in this process, and the gateway's end."""

    def end_of_gateway() -> None:
        raise GatewayGoneError

    monkeypatch.setattr(_connection, "end_of_gateway", end_of_gateway)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(WAIT_SECONDS)
        yield _connection.Connection(ours.fileno()), theirs


def limit_writes(monkeypatch: pytest.MonkeyPatch, descriptor: int, limit_bytes: int) -> None:
    write = os.write

    def write_a_part(target: int, data: memoryview) -> int:
        return write(target, data[:limit_bytes] if target == descriptor else data)

    monkeypatch.setattr(os, "write", write_a_part)


@contextlib.contextmanager
def beside(action: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """Run something in a thread for as long as a block runs."""
    thread = threading.Thread(target=action, args=arguments, daemon=True)
    thread.start()
    yield
    thread.join(WAIT_SECONDS)
    assert not thread.is_alive()


Sockets = tuple[_connection.Connection, socket.socket]


def test_frames_that_arrive_byte_by_byte_are_read(sockets: Sockets) -> None:
    connection, gateway = sockets
    frames = [entry["frame"] for entry in golden_frames()]

    def trickle() -> None:
        for byte in b"".join(frames):
            gateway.sendall(bytes([byte]))
            time.sleep(0.0002)

    with beside(trickle):
        assert [_protocol.encode(connection.read()) for _ in frames] == frames


def test_frames_that_arrive_in_one_write_are_read_one_by_one(sockets: Sockets) -> None:
    connection, gateway = sockets
    messages = [embed(number, [1] * (number + 1), [2]) for number in range(50)]
    gateway.sendall(b"".join(map(_protocol.encode, messages)))
    assert [connection.read() for _ in messages] == messages


def test_frame_larger_than_the_socket_is_read(sockets: Sockets) -> None:
    connection, gateway = sockets
    with beside(gateway.sendall, _protocol.encode(BIG)):
        assert connection.read() == BIG


def test_length_above_the_cap_takes_no_memory(sockets: Sockets) -> None:
    connection, gateway = sockets
    gateway.sendall(b"AKDB\x01\x10\x00\x00\xff\xff\xff\xff")
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="announces 4294967295 bytes"):
            connection.read()
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_partial_writes_are_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(WAIT_SECONDS)
        limit_writes(monkeypatch, ours.fileno(), 5)
        _connection.Connection(ours.fileno()).write(embed(1, [1, 2, 3], [4]))
        assert read_frame(theirs) == embed(1, [1, 2, 3], [4])


def test_frame_larger_than_the_socket_is_written_whole(sockets: Sockets) -> None:
    connection, gateway = sockets
    with beside(connection.write, BIG):
        assert read_frame(gateway) == BIG


def test_frames_of_several_threads_are_not_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(WAIT_SECONDS)
        limit_writes(monkeypatch, ours.fileno(), 3)
        connection = _connection.Connection(ours.fileno())

        def write(first: int) -> None:
            for number in range(first, first + 100):
                connection.write(_protocol.Begun(batch_id=number))

        with beside(write, 0), beside(write, 1000), beside(write, 2000), beside(write, 3000):
            received = [read_frame(theirs) for _ in range(400)]
    numbers = [message.batch_id for message in received if isinstance(message, _protocol.Begun)]
    assert sorted(numbers) == [first + number for first in (0, 1000, 2000, 3000) for number in range(100)]


@pytest.mark.parametrize("sent", [b"", b"AKDB", _protocol.encode(embed(1, [1, 2]))[:-1]])
def test_end_of_file_ends_the_process(start: Callable[..., Child], sent: bytes) -> None:
    child = start(SCRIPT, "read")
    child.expect(_protocol.Begun)
    child.socket.sendall(sent)
    child.socket.close()
    assert child.exit_code(END_SECONDS) == 0
    assert child.stderr == ""


def test_half_close_ends_the_process(start: Callable[..., Child]) -> None:
    child = start(SCRIPT, "read")
    child.expect(_protocol.Begun)
    child.socket.shutdown(socket.SHUT_WR)
    assert child.exit_code(END_SECONDS) == 0


def test_reset_ends_the_process(start: Callable[..., Child]) -> None:
    child = start(SCRIPT, "read")
    # Closing a Unix socket that has unread bytes resets the peer.
    child.socket.recv(1, socket.MSG_PEEK)
    child.socket.close()
    assert child.exit_code(END_SECONDS) == 0
    assert child.stderr == ""


def test_hang_up_during_a_write_ends_the_process(start: Callable[..., Child]) -> None:
    child = start(SCRIPT, "write")
    child.send(embed(1, [1]))
    child.expect(_protocol.Fatal)
    child.socket.close()
    assert child.exit_code(END_SECONDS) == 0
    assert child.stderr == ""


@ON_ANY_SYSTEM
def test_hang_up_ends_the_process_while_it_computes(start: Callable[..., Child], system: list[Path]) -> None:
    child = start(*system, SCRIPT, "spin")
    child.expect(_protocol.Begun)
    assert child.process.poll() is None
    child.socket.close()
    assert child.exit_code(END_SECONDS) == 0


@ON_ANY_SYSTEM
def test_heartbeats_come_only_once_the_worker_beats(start: Callable[..., Child], system: list[Path]) -> None:
    child = start(*system, SCRIPT, "beat")
    child.expect(_protocol.Begun)
    child.socket.settimeout(0.5)
    with pytest.raises(TimeoutError):
        child.socket.recv(1)
    child.socket.settimeout(WAIT_SECONDS)
    child.send(embed(1, [1]))
    assert [child.receive() for _ in range(5)] == [_protocol.Heartbeat(steps_done=41)] * 5


@ON_ANY_SYSTEM
def test_watching_takes_no_bytes_from_the_reader(start: Callable[..., Child], system: list[Path]) -> None:
    child = start(*system, SCRIPT, "echo")
    messages = [embed(number, [number] * 200) for number in range(100)]
    for message in messages:
        child.send(message)
        assert child.receive() == message
