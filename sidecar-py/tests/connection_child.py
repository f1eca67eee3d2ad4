#!/usr/bin/env python3
"""A process with nothing but a connection on its standard input; the argument says what it does with it."""

from __future__ import annotations

import os
import sys

from akidb_sidecar import _connection, _protocol

EXIT_RETURNED = 3
"""The connection went on after its gateway had gone."""


def main(action: str) -> int:
    connection = _connection.Connection()
    if action == "read":
        connection.write(_protocol.Begun(batch_id=0))
        connection.read()
    elif action == "write":
        connection.read()
        while os.getppid():
            connection.write(_protocol.Fatal(code="x", message="x" * 10_000))
    elif action == "spin":
        connection.watch(beats=False)
        connection.write(_protocol.Begun(batch_id=0))
        while True:
            pass
    elif action == "beat":
        connection = _connection.Connection(heartbeat_ms=20)
        connection.watch(beats=False)
        connection.write(_protocol.Begun(batch_id=0))
        connection.read()
        connection.steps_done = lambda: 41
        connection.watch(beats=True)
        connection.read()
    elif action == "echo":
        connection = _connection.Connection(heartbeat_ms=1)
        connection.watch(beats=False)
        while True:
            connection.write(connection.read())
    return EXIT_RETURNED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
