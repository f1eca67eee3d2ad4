"""The worker's loop, in a process of its own, around an engine that takes orders (``fake_engine.py``)."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import fake_engine
import pytest
from conftest import END_SECONDS, TESTS, WAIT_SECONDS, Child, embed, read_frame, wait_until

from akidb_sidecar import __version__, _protocol, _worker
from akidb_sidecar._errors import EXIT_SOFTWARE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

SCRIPT = TESTS / "fake_engine.py"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return the path of the file that says what reached the engine."""
    return tmp_path / "log"


@pytest.fixture
def worker(start: Callable[..., Child], log: Path) -> Child:
    """Return a worker that is ready."""
    child = start(SCRIPT, log, "at_once")
    child.ready()
    return child


@pytest.fixture
def loading(start: Callable[..., Child], log: Path) -> Child:
    """Return a worker whose engine loads until ``log.go`` is there."""
    child = start(SCRIPT, log, "wait")
    child.expect(_protocol.Hello)
    wait_until(log.exists, "the engine loads")
    return child


def notes(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def refuse(worker: Child, texts: Sequence[Sequence[int]], code: str) -> str:
    """Send a batch that must fail; return the message."""
    worker.send(embed(9, *texts))
    assert worker.expect(_protocol.Begun).batch_id == 9
    answer = worker.expect(_protocol.Failed)
    assert (answer.batch_id, answer.code) == (9, code)
    return answer.message


def test_hello_comes_before_the_engine_is_loaded(start: Callable[..., Child], log: Path) -> None:
    child = start(SCRIPT, log, "wait")
    hello = _protocol.Hello(pid=child.process.pid, sidecar_version=__version__)
    assert child.receive() == hello
    assert child.receive() == _protocol.Heartbeat(steps_done=0)
    assert child.receive() == _protocol.Heartbeat(steps_done=0)
    log.with_suffix(".go").touch()
    child.expect(_protocol.Ready)


def test_ready_comes_after_a_warm_up_batch_reached_the_engine(worker: Child, log: Path) -> None:
    lengths = [min(length, fake_engine.MAX_TOKENS) for length in _worker.WARM_UP_LENGTHS]
    assert max(lengths) == fake_engine.MAX_TOKENS
    assert worker.process.poll() is None
    # Once to warm up, and once to be timed.
    assert notes(log)[1:] == [{"lengths": lengths, "pooling": "mean", "threads": 0}] * 2


def test_a_gpu_is_warmed_up_with_many_texts_and_says_then_in_which_type_it_computes(
    start: Callable[..., Child], log: Path
) -> None:
    ready = start(SCRIPT, log, "gpu").ready()
    lengths = [min(length, fake_engine.MAX_TOKENS) for length in _worker.WARM_UP_LENGTHS] * 16
    assert [entry["lengths"] for entry in notes(log)[1:]] == [lengths] * 2
    assert ready.warm_up_tokens == sum(lengths)
    assert sum(_worker.WARM_UP_LENGTHS) * 16 == 2016
    assert (ready.device, ready.dtype) == ("gpu", "float32")


def test_ready_says_what_the_engine_says(start: Callable[..., Child], log: Path) -> None:
    child = start(SCRIPT, log, "at_once")
    ready = child.ready()
    info = fake_engine.INFO
    assert (ready.model_type, ready.dimension, ready.max_tokens) == ("made-up", 2, 48)
    assert (ready.device, ready.dtype, ready.blas) == (info.device, info.dtype, info.blas)
    assert ready.warnings == ["a warning"]
    assert ready.warm_up_tokens == sum(notes(log)[1]["lengths"])
    assert 0 < ready.warm_up_seconds < WAIT_SECONDS


def test_heartbeats_tell_the_steps_of_the_engine(worker: Child) -> None:
    worker.embed([1])
    refuse(worker, [[]], "invalid_batch")
    started = time.monotonic()
    # Two of them in the warm-up.
    assert worker.receive() == _protocol.Heartbeat(steps_done=3)
    assert time.monotonic() - started < 5


def test_batch_is_begun_and_then_answered(worker: Child, log: Path) -> None:
    worker.send(embed(2**64 - 1, [5, 6, 7], [9], pooling="last", threads=2))
    assert worker.receive() == _protocol.Begun(batch_id=2**64 - 1)
    answer = worker.expect(_protocol.Vectors)
    assert (answer.batch_id, answer.count, answer.dimension) == (2**64 - 1, 2, 2)
    assert list(answer.vectors.cast("f")) == [18, 3, 9, 1]
    assert 0 <= answer.compute_seconds < WAIT_SECONDS
    assert notes(log)[-1] == {"lengths": [3, 1], "pooling": "last", "threads": 2}


def test_waiting_batches_are_answered_in_order(worker: Child) -> None:
    worker.send(*(embed(number, [number]) for number in range(1, 30)))
    for number in range(1, 30):
        assert worker.expect(_protocol.Begun).batch_id == number
        answer = worker.expect(_protocol.Vectors)
        assert (answer.batch_id, list(answer.vectors.cast("f"))) == (number, [number, 1])


def test_exception_fails_the_batch_and_nothing_else(worker: Child) -> None:
    message = refuse(worker, [[1], [fake_engine.RAISE]], "inference_failed")
    assert message == "ZeroDivisionError while 2 texts were computed"
    assert "ZeroDivisionError: secret text" in worker.stderr
    assert list(worker.embed([3, 4])) == [7, 2]


def test_bad_output_fails_the_batch_and_nothing_else(worker: Child) -> None:
    assert refuse(worker, [[fake_engine.BAD_OUTPUT]], "bad_output") == "a vector is not finite"
    assert list(worker.embed([3, 4])) == [7, 2]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "the batch has no text"),
        ([[1], []], "a text has no tokens"),
        ([[1], [1] * (fake_engine.MAX_TOKENS + 1)], "a text has 49 tokens, at most 48 are allowed"),
    ],
    ids=["no text", "no tokens", "too long"],
)
def test_invalid_batch_does_not_reach_the_engine(
    worker: Child, log: Path, texts: list[list[int]], message: str
) -> None:
    before = notes(log)
    assert refuse(worker, texts, "invalid_batch") == message
    assert notes(log) == before
    assert list(worker.embed([1] * fake_engine.MAX_TOKENS)) == [48, 48]


def test_model_error_is_fatal(start: Callable[..., Child], log: Path) -> None:
    child = start(SCRIPT, log, "missing")
    child.expect(_protocol.Hello)
    assert child.receive() == _protocol.Fatal(code="bad_model", message="there is nothing in `caf?`")
    assert child.exit_code() == 78
    assert child.socket.recv(1) == b""
    assert child.stderr == ""


@pytest.mark.parametrize(
    ("load", "message"),
    [("forbidden", "[Errno 1] Operation not permitted"), ("broken", "[load] no such thing")],
)
def test_error_that_would_come_again_is_fatal(
    start: Callable[..., Child], log: Path, load: str, message: str
) -> None:
    child = start(SCRIPT, log, load)
    child.expect(_protocol.Hello)
    fatal = _protocol.Fatal(code="internal", message=f"loading the model failed: {message}")
    assert child.receive() == fatal
    assert child.exit_code() == 78
    assert "Traceback" in child.stderr


@pytest.mark.parametrize("load", ["short", "no_thread"])
def test_shortage_while_loading_is_not_fatal(start: Callable[..., Child], log: Path, load: str) -> None:
    child = start(SCRIPT, log, load)
    child.expect(_protocol.Hello)
    assert child.socket.recv(1) == b""
    assert child.exit_code() == 1
    assert "Error: " in child.stderr


def test_bad_output_in_the_warm_up_is_fatal(start: Callable[..., Child], log: Path) -> None:
    child = start(SCRIPT, log, "damaged")
    child.expect(_protocol.Hello)
    fatal = child.expect(_protocol.Fatal)
    assert fatal.code == "bad_model"
    assert "the warm-up failed: a vector is not finite" in fatal.message
    assert child.exit_code() == 78


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "instead of `AKDB`"),
        (b"AKDB\x01\x10\x00\x00\xff\xff\xff\xff", "announces 4294967295 bytes"),
        (b"AKDB\x01\x10\x00\x00\x01\x00\x00\x00\x80", "missing required field"),
        (b"AKDB\x01\x10\x00\x00\x00\x00\x00\x00", "truncated"),
        (_protocol.encode(_protocol.Heartbeat(steps_done=1)), "`heartbeat` message is not expected"),
    ],
    ids=["garbage", "length", "empty map", "no body", "wrong direction"],
)
def test_bad_frame_ends_the_worker(worker: Child, frame: bytes, reason: str) -> None:
    worker.socket.sendall(frame)
    assert worker.exit_code() == 70
    line = worker.stderr
    assert line.startswith("akidb_sidecar: the gateway sent a bad frame: ")
    assert reason in line
    assert line.count("\n") == 1


def test_signals_are_ignored_while_the_engine_loads(loading: Child, log: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loading.process.send_signal(number)
    log.with_suffix(".go").touch()
    loading.expect(_protocol.Ready)


def test_signals_are_ignored_when_ready(worker: Child) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        worker.process.send_signal(number)
        assert list(worker.embed([3, 4])) == [7, 2]


def test_descriptors_above_two_are_closed(start: Callable[..., Child], log: Path) -> None:
    reading, writing = os.pipe()
    high = os.dup(reading)
    try:
        child = start(SCRIPT, log, "at_once", descriptors=(reading, writing, high))
        child.ready()
    finally:
        for descriptor in (reading, writing, high):
            os.close(descriptor)
    assert notes(log)[0] == {"descriptors": [0, 1, 2]}


def test_what_a_library_prints_goes_to_the_log(worker: Child) -> None:
    worker.embed([fake_engine.PRINT])
    assert "printed by Python\n" in worker.stderr
    assert "printed by C\n" in worker.stderr
    assert worker.stdout == ""


def test_lost_device_is_told_and_ends_the_worker(worker: Child) -> None:
    worker.send(embed(1, [fake_engine.LOSE_DEVICE]))
    worker.expect(_protocol.Begun)
    assert worker.expect(_protocol.Fatal) == _protocol.Fatal(
        code="device_lost", message=fake_engine.DEVICE_LOST
    )
    assert worker.exit_code(END_SECONDS) == EXIT_SOFTWARE


@pytest.mark.parametrize("load", ["lost", "lost_in_warm_up"])
def test_device_lost_before_the_worker_is_ready_is_not_fatal(
    start: Callable[..., Child], log: Path, load: str
) -> None:
    child = start(SCRIPT, log, load)
    child.expect(_protocol.Hello)
    assert child.exit_code(END_SECONDS) == EXIT_SOFTWARE
    with pytest.raises(EOFError):
        read_frame(child.socket)
    assert f"the device is lost: {fake_engine.DEVICE_LOST}" in child.stderr


def test_gpu_out_of_memory_is_an_error_of_the_batch(worker: Child) -> None:
    refuse(worker, [[fake_engine.RUN_OUT_OF_MEMORY]], "inference_failed")
    assert list(worker.embed([1])) == [1, 1]


def test_end_of_file_ends_an_idle_worker(worker: Child) -> None:
    worker.socket.close()
    assert worker.exit_code(END_SECONDS) == 0
    assert worker.stderr == ""


def test_end_of_file_ends_a_loading_worker(loading: Child) -> None:
    loading.socket.close()
    assert loading.exit_code(END_SECONDS) == 0


@pytest.mark.parametrize("order", [fake_engine.SPIN, fake_engine.SLEEP])
def test_end_of_file_ends_a_computing_worker(worker: Child, log: Path, order: int) -> None:
    worker.send(embed(1, [order]))
    worker.expect(_protocol.Begun)
    wait_until(lambda: len(notes(log)) == 4, "the batch reached the engine")
    assert worker.process.poll() is None
    worker.socket.close()
    assert worker.exit_code(END_SECONDS) == 0
