#!/usr/bin/env python3
"""The real worker loop around an engine that takes orders: ``fake_engine.py LOG LOAD``.

``LOAD`` says how the engine loads: ``at_once``, ``wait`` (until the file ``LOG.go`` is there), ``missing``
(:class:`ModelError`), ``damaged`` (its warm-up fails with :class:`OutputError`), ``gpu`` (one that takes
another type in its warm-up), ``lost_in_warm_up``, or by a name in :data:`ERRORS`. What reaches the engine is
appended to ``LOG``, one JSON object a line. A text of one of the token ids below makes the engine do
something else than give its vector, which is the sum of the text's token ids and their number.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

from akidb_sidecar import _engine, _worker
from akidb_sidecar._errors import ModelError, OutputError

RAISE = 1001
BAD_OUTPUT = 1002
PRINT = 1003
SPIN = 1004
SLEEP = 1005
LOSE_DEVICE = 1006
RUN_OUT_OF_MEMORY = 1007
DEVICE_LOST = (
    "[METAL] Command buffer execution failed: Caused GPU Timeout Error "
    "(00000002:kIOGPUCommandBufferCallbackErrorTimeout)."
)
OUT_OF_MEMORY = (
    "[METAL] Command buffer execution failed: Insufficient Memory "
    "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)."
)
ERRORS = {
    "lost": RuntimeError(DEVICE_LOST),
    "forbidden": PermissionError(errno.EPERM, "Operation not permitted"),
    "broken": RuntimeError("[load] no such\nthing"),
    "short": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "no_thread": RuntimeError("can't start new thread"),
}
"""What loading ends with."""
MAX_TOKENS = 48
DIMENSION = 2
INFO = _engine.EngineInfo("made-up", DIMENSION, MAX_TOKENS, "cpu", "float32", "none", ("a warning",))


class FakeEngine:
    """Computes sums."""

    def __init__(self, log: Path, load: str) -> None:
        self.info = replace(INFO, device="gpu", dtype="float16") if load == "gpu" else INFO
        self._log = log
        self._damaged = load == "damaged"
        self._lost = load == "lost_in_warm_up"
        self._batches_done = 0

    def steps_done(self) -> int:
        return self._batches_done

    def embed(self, batch: _engine.Batch) -> memoryview:
        lengths, token_ids = array("I", batch.lengths), array("I", batch.token_ids)
        note(self._log, lengths=list(lengths), pooling=batch.pooling, threads=batch.threads)
        if self._damaged or BAD_OUTPUT in token_ids:
            raise OutputError("a vector is not finite")
        if self._lost:
            raise RuntimeError(DEVICE_LOST)
        obey(token_ids)
        numbers = array("f")
        start = 0
        for length in lengths:
            numbers.extend((sum(token_ids[start : start + length]), length))
            start += length
        self._batches_done += 1
        if self.info.device == "gpu":
            self.info = replace(self.info, dtype="float32")
        return memoryview(numbers).cast("B")


def obey(token_ids: array[int]) -> None:
    if RAISE in token_ids:
        raise ZeroDivisionError("secret text")
    if LOSE_DEVICE in token_ids:
        raise RuntimeError(DEVICE_LOST)
    if RUN_OUT_OF_MEMORY in token_ids:
        raise RuntimeError(OUT_OF_MEMORY)
    if PRINT in token_ids:
        print("printed by Python")  # noqa: T201
        os.write(1, b"printed by C\n")
    while SPIN in token_ids:
        pass
    if SLEEP in token_ids:
        time.sleep(1000)


def note(log: Path, **facts: Any) -> None:
    with log.open("a") as file:
        file.write(json.dumps(facts) + "\n")


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def main(log: Path, load: str) -> int:
    def load_engine() -> _engine.Engine:
        note(log, descriptors=[number for number in range(1024) if is_open(number)])
        while load == "wait" and not log.with_suffix(".go").exists():
            time.sleep(0.01)
        if load == "missing":
            raise ModelError("bad_model", "there is\nnothing in `caf\udce9`")
        if load in ERRORS:
            raise ERRORS[load]
        return FakeEngine(log, load)

    return _worker.run(load_engine)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
