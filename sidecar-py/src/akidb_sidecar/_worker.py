"""A worker: hello, load, warm up, ready; then read a batch, embed it, write the answer, forever."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

from akidb_sidecar import __version__, _protocol
from akidb_sidecar._connection import HEARTBEAT_MS, Connection
from akidb_sidecar._device_errors import device_errors
from akidb_sidecar._engine import Batch, Engine
from akidb_sidecar._errors import (
    EXIT_CONFIGURATION,
    EXIT_SOFTWARE,
    BatchError,
    DeviceLostError,
    ModelError,
    OutputError,
    ProtocolError,
    is_shortage,
)

if TYPE_CHECKING:
    from collections.abc import Callable

WARM_UP_LENGTHS = (64, 32, 16, 8, 4, 2)
GPU_WARM_UPS = 16
"""How many times these texts are in the batch that warms a GPU up: with few texts launches would be measured,
and the gateway would make its batches far too small."""
LOWEST_WARM_UP_TOKEN = 1


def run(load_engine: Callable[[], Engine], heartbeat_ms: int = HEARTBEAT_MS) -> int:
    """Serve the gateway on standard input; return an exit code when that is not possible."""
    _isolate()
    connection = Connection(heartbeat_ms=heartbeat_ms)
    connection.write(_protocol.Hello(pid=os.getpid(), sidecar_version=__version__))
    connection.watch(beats=True)
    try:
        with device_errors():
            engine = load_engine()
            ready = _warm_up(engine)
    except ModelError as error:
        connection.write(_protocol.Fatal(code=error.code, message=error.message))
        return EXIT_CONFIGURATION
    except DeviceLostError as error:
        # Not `fatal`: the next process may become ready.
        _log(f"the device is lost: {error}")
        return EXIT_SOFTWARE
    except (OSError, RuntimeError) as error:
        if is_shortage(error):
            raise  # not `fatal` either
        traceback.print_exc(file=sys.stderr)
        told = ModelError("internal", f"loading the model failed: {error}")
        connection.write(_protocol.Fatal(code=told.code, message=told.message))
        return EXIT_CONFIGURATION
    connection.beat()  # the gateway wants to know how much memory the model takes before it has a batch
    connection.write(ready)
    connection.steps_done = engine.steps_done
    if os.environ.get("AKIDB_CHAOS") == "1":
        signal.signal(signal.SIGUSR1, _hang)
    try:
        while True:
            _answer(connection, engine, connection.read())
    except ProtocolError as error:
        _log(f"the gateway sent a bad frame: {error}")
        return EXIT_SOFTWARE
    except DeviceLostError as error:
        connection.write(_protocol.Fatal(code=_protocol.DEVICE_LOST, message=str(error)))
        return EXIT_SOFTWARE


def _isolate() -> None:
    """Let only end-of-file and SIGKILL end the process, and keep no descriptor but the first three."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.closerange(3, max(int(entry.name) for entry in Path("/dev/fd").iterdir()) + 1)
    # What a library prints belongs in the log, too.
    os.dup2(2, 1)
    sys.stdout = sys.stderr


def _warm_up(engine: Engine) -> _protocol.Ready:
    times = GPU_WARM_UPS if engine.info.device == "gpu" else 1
    lengths = [min(length, engine.info.max_tokens) for length in WARM_UP_LENGTHS] * times
    token_ids = array("I", [LOWEST_WARM_UP_TOKEN]) * sum(lengths)
    batch = Batch(lengths=array("I", lengths).tobytes(), token_ids=token_ids.tobytes(), pooling="mean")
    try:
        engine.embed(batch)
        # The gateway sizes its batches by the speed of the second pass; the first one fills caches.
        started = time.monotonic()
        engine.embed(batch)
        seconds = time.monotonic() - started
    except OutputError as error:
        raise ModelError("bad_model", f"the warm-up failed: {error}; the weights may be damaged") from error
    info = engine.info  # only now does it know in which type it computes
    return _protocol.Ready(
        model_type=info.model_type,
        dimension=info.dimension,
        max_tokens=info.max_tokens,
        device=info.device,
        dtype=info.dtype,
        blas=info.blas,
        warnings=list(info.warnings),
        warm_up_tokens=len(token_ids),
        warm_up_seconds=seconds,
    )


def _answer(connection: Connection, engine: Engine, message: _protocol.Message) -> None:
    if not isinstance(message, _protocol.Embed):
        raise ProtocolError(f"a `{type(message).__name__.lower()}` message is not expected here")
    connection.write(_protocol.Begun(batch_id=message.batch_id))
    started = time.monotonic()
    answer: _protocol.Message
    try:
        batch = Batch(message.lengths, message.token_ids, message.pooling, message.threads)
        batch.check_lengths(engine.info.max_tokens)
        with device_errors():
            vectors = engine.embed(batch)
        answer = _protocol.Vectors(
            batch_id=message.batch_id,
            count=message.count,
            dimension=engine.info.dimension,
            compute_seconds=time.monotonic() - started,
            vectors=vectors,
        )
    except BatchError as error:
        answer = _protocol.Failed(batch_id=message.batch_id, code="invalid_batch", message=str(error))
    except OutputError as error:
        answer = _protocol.Failed(batch_id=message.batch_id, code="bad_output", message=str(error))
    except DeviceLostError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the model raises, the worker lives on
        traceback.print_exc(file=sys.stderr)
        reason = f"{type(error).__name__} while {message.count} texts were computed"
        answer = _protocol.Failed(batch_id=message.batch_id, code="inference_failed", message=reason)
    connection.write(answer)


def _hang(_number: int, _frame: object) -> None:
    """Stop computing forever while heartbeats go on: what ``make chaos`` does to a worker."""
    while True:
        time.sleep(3600)


def _log(line: str) -> None:
    print(f"akidb_sidecar: {line}", file=sys.stderr, flush=True)  # noqa: T201 - stderr is the log
