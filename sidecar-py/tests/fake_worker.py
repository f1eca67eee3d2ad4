#!/usr/bin/env python3
"""A worker without a model, which misbehaves on command. The gateway's tests run it with ``--python``.

It takes the sidecar's command lines. Vectors are made up from the token ids alone, so that a test can tell a
right vector from a wrong one: see :func:`vector`. Misbehaviour is read, as a JSON object, from the file that
``AKIDB_FAKE_CONTROL`` names: once at the start and again before every batch. Keys:

``workers`` (an object: worker's id to an object of keys) says something else for one worker.

At the start: ``warm_up`` (tokens and seconds that it says its warm-up took), ``start_delay`` (seconds),
``start_exit`` (code), ``hello_version`` (number), ``fatal`` (message), ``never_ready`` (true), ``say`` (a
line for standard error), ``report`` (a file that is told what is around the worker), ``orphan`` (true: a
child that outlives the worker a little), ``shorter`` (by this many tokens the longest text is shorter than it
was told to be), ``footprint`` (bytes that its heartbeats say of its memory; read again before every
heartbeat), ``hello_delay`` (seconds before ``hello``), ``hold_gil`` (seconds after ``hello`` in which
no heartbeat has a turn).

At a batch (``only_worker`` limits them to one worker's id, ``only_pid`` to one process; ``times`` counts how
often, over all workers; ``at_warm_up``, an object of keys, says what else holds for the warm-up text):
``delay`` (seconds a batch), ``delay_per_token`` (seconds), ``cores`` (number: a batch that is given fewer
threads takes longer in proportion), ``progress`` (true: heartbeats say that the
batch makes progress meanwhile), ``exit`` (code, once begun), ``signal`` (number, sent to itself once begun),
``hang`` (true: forever, heartbeats go on), ``hang_at`` (a token id: hangs when a batch has it),
``device_lost`` (true: says that its device is lost, and ends), ``device_lost_at`` (a token id),
``before_begun`` (true: all of these, and deaths by a token id, come before the batch is begun), ``fail``
(true: an exception), ``poison`` (a token id: SIGSEGV
when a batch has it), ``killed_by`` (a token id: SIGKILL when a batch has it), ``culprit`` (a token id: an
exception when a batch has it), ``bad_text`` (a token id: no usable vector when a batch has it), ``numbers``
(``nan`` | ``inf`` | ``zero`` | ``huge``: what the vectors hold), ``zeros`` (this many numbers at the start of
a vector are zero), ``grow`` (bytes of memory to take and keep), ``exit_after`` (code, once the answer is
sent), ``count`` and ``dimension`` (added to what the answer states), ``wrong_id`` (true), ``cut`` (bytes of
the answer to send before exiting), ``stall`` (bytes of the answer to send before hanging), ``garbage``
(hex, sent instead of the answer).
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import sys
import time
import zlib
from array import array
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

from akidb_sidecar import __main__, _protocol, _worker
from akidb_sidecar._connection import SOCKET, Connection


def vector(token_ids: array[int], dimension: int) -> array[float]:
    """Make up a vector: element ``j`` is ``((crc32(ids) * (2 j + 1)) % 2003 - 1001.5) / 1001``."""
    return _vector(zlib.crc32(token_ids.tobytes()), dimension)


@lru_cache(maxsize=1000)
def _vector(seed: int, dimension: int) -> array[float]:
    return array("f", [((seed * (2 * j + 1)) % 2003 - 1001.5) / 1001 for j in range(dimension)])


class Misbehaviour:
    """The control file."""

    def __init__(self, worker_id: int) -> None:
        self._path = os.environ.get("AKIDB_FAKE_CONTROL")
        self._worker_id = worker_id

    def at_start(self) -> dict[str, Any]:
        return self._read()

    def at_batch(self, token_ids: array[int]) -> dict[str, Any]:
        """Return what to do now, and count it down where it is to happen some ``times`` only."""
        wanted = self._read()
        wanted |= wanted.get("workers", {}).get(str(self._worker_id), {})
        if wanted.get("only_worker", self._worker_id) != self._worker_id:
            return {}
        if wanted.get("only_pid", os.getpid()) != os.getpid():
            return {}
        if set(token_ids) == {_worker.LOWEST_WARM_UP_TOKEN}:
            wanted |= wanted.get("at_warm_up", {})
        return self._count_down() if "times" in wanted else wanted

    def _read(self) -> dict[str, Any]:
        text = Path(self._path).read_text() if self._path and Path(self._path).exists() else ""
        return json.loads(text) if text else {}

    def _count_down(self) -> dict[str, Any]:
        assert self._path is not None
        with Path(self._path).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            wanted: dict[str, Any] = json.loads(file.read())
            if wanted.get("times", 1) <= 0:
                return {}
            file.seek(0)
            file.truncate()
            file.write(json.dumps({**wanted, "times": wanted.get("times", 1) - 1}))
        return wanted


def main() -> int:
    words = sys.argv[sys.argv.index("akidb_sidecar") + 1 :]
    command = words[0]
    words = [part for word in words if word != "--end-with-input" for part in word.split("=", 1)]
    flags = dict(zip(words[1::2], words[2::2], strict=True))
    if command == "prepare" and not Path(flags["--model"]).is_dir():
        sys.argv[1:] = sys.argv[sys.argv.index("akidb_sidecar") + 1 :]
        return __main__.main()  # hubs are faked elsewhere
    if command == "prepare":
        print(json.dumps({"path": flags["--model"], "source": "path", "revision": None}))  # noqa: T201
        return 0
    worker_id = int(flags["--worker-id"])
    config = json.loads((Path(flags["--model-path"]) / "config.json").read_text())
    connection = Connection(heartbeat_ms=int(flags["--heartbeat-ms"]))
    on_gpu = flags.get("--device") == "gpu"
    dtype = flags["--gpu-dtype"] if on_gpu else flags.get("--cpu-weights", "float32")
    told = Told(config["hidden_size"], int(flags["--max-tokens"]), "gpu" if on_gpu else "cpu", dtype)
    return serve(connection, Misbehaviour(worker_id), told)


@dataclass(frozen=True)
class Told:
    """What the command line says, which comes back in ``ready``.

    On a CPU, the weights' form comes back as the type that the worker computes with.
    """

    dimension: int
    max_tokens: int
    device: str
    dtype: str


def serve(connection: Connection, misbehaviour: Misbehaviour, told: Told) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    start = misbehaviour.at_start()
    if "report" in start:
        blocked = sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ())))
        around = {"environment": dict(os.environ), "folder": str(Path.cwd()), "blocked": blocked}
        Path(start["report"]).write_text(json.dumps(around))
    if start.get("orphan"):
        os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "0.5")  # noqa: S606
    if "say" in start:
        print(start["say"], file=sys.stderr, flush=True)  # noqa: T201
    if "start_exit" in start:
        print("asked to end", file=sys.stderr, flush=True)  # noqa: T201
        return int(start["start_exit"])
    time.sleep(start.get("hello_delay", 0))
    hello = bytearray(_protocol.encode(_protocol.Hello(pid=os.getpid(), sidecar_version="fake")))
    hello[4] = start.get("hello_version", hello[4])
    os.write(SOCKET, hello)
    connection.memory_bytes = lambda: misbehaviour.at_start().get("footprint")
    connection.watch(beats=True)
    if "hold_gil" in start:
        # Like C code that was entered with the interpreter locked: `PyDLL` does not give the lock back.
        ctypes.PyDLL(None).usleep(int(start["hold_gil"] * 1e6))
    time.sleep(start.get("start_delay", 0))
    if "fatal" in start:
        connection.write(_protocol.Fatal(code="bad_model", message=start["fatal"]))
        return 78
    if start.get("never_ready"):
        signal.pause()
    dimension = told.dimension
    warm_up, longest = start.get("warm_up", [10, 0.01]), told.max_tokens - start.get("shorter", 0)
    connection.beat()
    connection.write(
        _protocol.Ready(
            "fake", dimension, longest, told.device, told.dtype, "none", [], warm_up[0], warm_up[1]
        )
    )
    kept: list[bytearray] = []
    while True:
        message = connection.read()
        assert isinstance(message, _protocol.Embed)
        now = misbehaviour.at_batch(array("I", message.token_ids))
        if now.get("before_begun"):
            misbehave_before_answer(connection, now, message)
        connection.write(_protocol.Begun(batch_id=message.batch_id))
        kept.append(bytearray(b"x") * now.get("grow", 0))
        connection.steps_done = time.monotonic_ns if now.get("progress") else lambda: 0
        begun = time.perf_counter()
        misbehave_before_answer(connection, now, message)
        took = time.perf_counter() - begun
        send_answer(connection, answer(message, dimension, now, took), now)
        if "exit_after" in now:
            os._exit(now["exit_after"])


def misbehave_before_answer(connection: Connection, now: dict[str, Any], message: _protocol.Embed) -> None:
    token_ids = array("I", message.token_ids)
    slowness = max(1.0, now["cores"] / message.threads) if "cores" in now else 1.0
    time.sleep(now.get("delay", 0) + now.get("delay_per_token", 0) * len(token_ids) * slowness)
    if "exit" in now:
        os._exit(now["exit"])
    if now.get("poison") in token_ids:
        os.kill(os.getpid(), signal.SIGSEGV)
    if now.get("killed_by") in token_ids:
        os.kill(os.getpid(), signal.SIGKILL)
    if "signal" in now:
        os.kill(os.getpid(), now["signal"])
    if now.get("device_lost") or now.get("device_lost_at") in token_ids:
        connection.write(_protocol.Fatal(code=_protocol.DEVICE_LOST, message="asked to lose it"))
        os._exit(70)
    if now.get("hang") or now.get("hang_at") in token_ids:
        while True:
            signal.pause()


def answer(message: _protocol.Embed, dimension: int, now: dict[str, Any], took: float) -> _protocol.Message:
    token_ids = array("I", message.token_ids)
    if now.get("fail") or now.get("culprit") in token_ids:
        return _protocol.Failed(batch_id=message.batch_id, code="inference_failed", message="asked to fail")
    if now.get("bad_text") in token_ids:
        return _protocol.Failed(batch_id=message.batch_id, code="bad_output", message="asked to be bad")
    numbers = array("f")
    start = 0
    for length in array("I", message.lengths):
        zeros = now.get("zeros", 0)
        numbers += array("f", bytes(4 * zeros)) + vector(token_ids[start : start + length], dimension)[zeros:]
        start += length
    if "numbers" in now:
        number = {"zero": 0.0, "huge": 3e38}.get(now["numbers"])
        numbers = array("f", [float(now["numbers"]) if number is None else number]) * len(numbers)
    count, stated = message.count + now.get("count", 0), dimension + now.get("dimension", 0)
    numbers = (numbers + array("f", bytes(4 * max(0, count * stated - len(numbers)))))[: count * stated]
    return _protocol.Vectors(
        batch_id=message.batch_id + (1000 if now.get("wrong_id") else 0),
        count=count,
        dimension=stated,
        compute_seconds=took,
        vectors=memoryview(numbers.tobytes()),
    )


def send_answer(connection: Connection, message: _protocol.Message, now: dict[str, Any]) -> None:
    frame = _protocol.encode(message)
    if "garbage" in now:
        os.write(SOCKET, bytes.fromhex(now["garbage"]))
    elif "cut" in now:
        os.write(SOCKET, frame[: now["cut"]])
        os._exit(1)
    elif "stall" in now:
        with connection._write_lock:  # or a heartbeat would come in between
            os.write(SOCKET, frame[: now["stall"]])
            while True:
                signal.pause()
    else:
        connection.write(message)


if __name__ == "__main__":
    sys.exit(main())
