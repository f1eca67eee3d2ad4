"""The socket to the gateway: exact reads, whole writes, and a thread that watches whether it is still there.

The socket is standard input, read and written by file descriptor. End-of-file ends the process at once:
nobody is left to read an answer.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import msgspec

from akidb_sidecar import _footprint, _protocol
from akidb_sidecar._hang_up import HangUp

if TYPE_CHECKING:
    from collections.abc import Callable

SOCKET = 0
HEARTBEAT_MS = 1000


class Connection:
    """Frames over the socket. One thread reads; any thread may write."""

    def __init__(self, descriptor: int = SOCKET, heartbeat_ms: int = HEARTBEAT_MS) -> None:
        self._descriptor = descriptor
        self._heartbeat_ms = heartbeat_ms
        self._write_lock = threading.Lock()
        self._header = bytearray(_protocol.HEADER_BYTES)
        self.steps_done: Callable[[], int] = lambda: 0
        """What heartbeats say of the worker's progress."""
        self.memory_bytes: Callable[[], int | None] = _footprint.physical
        """What they say of its memory."""

    def read(self) -> _protocol.Message:
        """Wait for one frame. Memory for its body is taken after its header was judged."""
        self._read_exactly(memoryview(self._header))
        message_type, body_bytes = _protocol.decode_header(self._header)
        body = bytearray(body_bytes)
        self._read_exactly(memoryview(body))
        return _protocol.decode_body(message_type, body)

    def write(self, message: _protocol.Message) -> None:
        """Send one frame, whole."""
        frame = memoryview(_protocol.encode(message))
        with self._write_lock:
            while frame:
                try:
                    frame = frame[os.write(self._descriptor, frame) :]
                except (BrokenPipeError, ConnectionResetError):
                    end_of_gateway()

    def beat(self) -> None:
        """Send a heartbeat now."""
        memory_bytes = self.memory_bytes()
        told = msgspec.UNSET if memory_bytes is None else memory_bytes
        self.write(_protocol.Heartbeat(steps_done=self.steps_done(), memory_bytes=told))

    def watch(self, *, beats: bool) -> None:
        """Start the liveness thread. It never reads, so that it takes nothing from the reading thread.

        ``beats`` says whether it sends heartbeats, which a worker does from its ``hello`` on.
        """
        threading.Thread(target=self._watch, args=(beats,), name="liveness", daemon=True).start()

    def _watch(self, beats: bool) -> None:
        hang_up = HangUp(self._descriptor)
        while not hang_up.comes_within(self._heartbeat_ms / 1000):
            if beats:
                self.beat()
        end_of_gateway()

    def _read_exactly(self, buffer: memoryview) -> None:
        while buffer:
            try:
                received = os.readv(self._descriptor, [buffer])
            except ConnectionResetError:
                received = 0
            if received == 0:
                end_of_gateway()
            buffer = buffer[received:]


def end_of_gateway() -> None:
    """End the process without a further step: the gateway is gone."""
    os._exit(0)
