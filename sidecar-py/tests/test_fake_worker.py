"""The fake worker of the gateway's tests: its vectors are what its documentation says."""

from __future__ import annotations

import json
import zlib
from array import array
from typing import TYPE_CHECKING

import fake_worker
import pytest
from conftest import TESTS, Child, embed, rows

from akidb_sidecar import _protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXTS = ([101, 7592, 102], [5], [101, 7592, 103])


@pytest.fixture
def start_worker(start: Callable[..., Child], tmp_path: Path) -> Callable[..., Child]:
    """Start a fake worker, ready, of dimension 6, which misbehaves as told."""
    (tmp_path / "config.json").write_text('{"hidden_size": 6}')
    control = tmp_path / "control.json"

    def start_fake(**misbehaviour: object) -> Child:
        control.write_text(json.dumps(misbehaviour))
        flags = ("--model-path", tmp_path, "--max-tokens", "32", "--worker-id", "0", "--heartbeat-ms", "1000")
        script = TESTS / "fake_worker.py"
        environment = {"AKIDB_FAKE_CONTROL": str(control)}
        child = start(script, "-m", "akidb_sidecar", "worker", *flags, environment=environment)
        ready = child.ready()
        assert (ready.dimension, ready.max_tokens) == (6, 32)
        return child

    return start_fake


def made_up(token_ids: list[int]) -> list[float]:
    """Compute the documented formula anew."""
    seed = zlib.crc32(b"".join(token_id.to_bytes(4, "little") for token_id in token_ids))
    return [((seed * (2 * j + 1)) % 2003 - 1001.5) / 1001 for j in range(6)]


def test_vectors_are_made_up_by_the_documented_formula(start_worker: Callable[..., Child]) -> None:
    vectors = rows(start_worker().embed(*TEXTS), len(TEXTS))
    for token_ids, vector in zip(TEXTS, vectors, strict=True):
        assert list(vector) == pytest.approx(made_up(token_ids), abs=1e-6)
        assert list(vector) == list(fake_worker.vector(array("I", token_ids), 6))
    assert vectors[0] != vectors[2]


def test_failure_on_command_comes_as_often_as_told(start_worker: Callable[..., Child]) -> None:
    worker = start_worker(fail=True, times=1)
    worker.send(embed(3, [5]))
    assert worker.expect(_protocol.Begun).batch_id == 3
    assert worker.expect(_protocol.Failed).batch_id == 3
    assert list(worker.embed([5])) == pytest.approx(made_up([5]), abs=1e-6)


def test_exit_on_command_comes_once_the_batch_is_begun(start_worker: Callable[..., Child]) -> None:
    worker = start_worker(exit=9)
    worker.send(embed(3, [5]))
    worker.expect(_protocol.Begun)
    assert worker.exit_code() == 9
