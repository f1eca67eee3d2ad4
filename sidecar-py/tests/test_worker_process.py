"""The real worker: the command that the gateway runs, with the real model, over a socket pair."""

from __future__ import annotations

import json
import random
import time
from typing import TYPE_CHECKING, Any

import pytest
from conftest import END_SECONDS, Child, GoldenText, cosine, embed, rows, wait_until

from akidb_sidecar import _protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.mlx


def command(model_path: Path, device: str = "cpu") -> tuple[str, ...]:
    flags = ("--model-path", str(model_path), "--max-tokens", "256", "--device", device)
    return ("-m", "akidb_sidecar", "worker", *flags)


@pytest.fixture
def worker(start: Callable[..., Child], minilm_path: Path) -> Child:
    """Return a worker of which nothing has been read yet."""
    return start(*command(minilm_path))


def model_directory(path: Path, config: dict[str, Any], weights: bytes) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes(weights)
    return path


def test_worker_says_hello_and_ready(worker: Child) -> None:
    assert worker.expect(_protocol.Hello).pid == worker.process.pid
    ready = worker.expect(_protocol.Ready)
    assert (ready.model_type, ready.dimension, ready.max_tokens) == ("bert", 384, 256)
    assert (ready.device, ready.dtype) == ("cpu", "float32")
    assert ready.blas not in ("", "reference")
    assert ready.warnings == []
    assert ready.warm_up_tokens > 0
    assert ready.warm_up_seconds > 0


def test_worker_gives_golden_vectors(worker: Child, golden_texts: list[GoldenText]) -> None:
    worker.ready()
    batch = golden_texts[:8]
    vectors = rows(worker.embed(*(text.token_ids for text in batch), threads=1), len(batch))
    for text, vector in zip(batch, vectors, strict=True):
        assert cosine(vector, text.vector) >= 0.9999


def test_worker_gives_golden_vectors_on_the_device_that_it_chooses(
    start: Callable[..., Child], minilm_path: Path, golden_texts: list[GoldenText]
) -> None:
    worker = start(*command(minilm_path, "auto"))
    ready = worker.ready()
    assert (ready.device, ready.dtype) in (("cpu", "float32"), ("gpu", "float16"))
    for text in golden_texts[:8]:
        assert cosine(worker.embed(text.token_ids), text.vector) >= 0.9999


def test_worker_refuses_a_bad_batch_and_goes_on(worker: Child, golden_texts: list[GoldenText]) -> None:
    worker.ready()
    worker.send(embed(1, [1000] * 257))
    worker.expect(_protocol.Begun)
    failed = worker.expect(_protocol.Failed)
    assert (failed.batch_id, failed.code) == (1, "invalid_batch")
    assert cosine(worker.embed(golden_texts[0].token_ids), golden_texts[0].vector) >= 0.9999


def test_reference_blas_is_warned_of(start: Callable[..., Child], minilm_path: Path) -> None:
    ready = start(*command(minilm_path), environment={"AKIDB_REFERENCE_BLAS": "1"}).ready()
    assert ready.blas == "reference"
    (warning,) = ready.warnings
    assert "reference" in warning


def test_end_of_file_ends_an_idle_worker(worker: Child) -> None:
    worker.ready()
    worker.socket.close()
    assert worker.exit_code(END_SECONDS) == 0
    assert worker.stderr == ""


@pytest.mark.parametrize("delay_seconds", [0.0, 0.05, 0.1, 0.2, 0.4])
def test_end_of_file_ends_a_worker_that_imports_or_loads(worker: Child, delay_seconds: float) -> None:
    worker.expect(_protocol.Hello)
    time.sleep(delay_seconds)
    worker.socket.close()
    assert worker.exit_code(END_SECONDS) == 0


def test_end_of_file_ends_a_computing_worker(worker: Child) -> None:
    worker.ready()
    generator = random.Random(1)  # noqa: S311 - repeatable
    worker.send(embed(1, *([generator.randrange(1000, 30000) for _ in range(256)] for _ in range(96))))
    worker.expect(_protocol.Begun)
    time.sleep(0.3)
    assert worker.process.poll() is None
    worker.socket.close()
    assert worker.exit_code(END_SECONDS) == 0


@pytest.mark.parametrize("kept_bytes", [0, 4, 1000, 1_000_000])
def test_damaged_weights_are_fatal(
    start: Callable[..., Child], minilm_path: Path, tmp_path: Path, kept_bytes: int
) -> None:
    config = json.loads((minilm_path / "config.json").read_text())
    with (minilm_path / "model.safetensors").open("rb") as weights:
        path = model_directory(tmp_path / "model", config, weights.read(kept_bytes))
    worker = start(*command(path))
    worker.expect(_protocol.Hello)
    fatal = worker.expect(_protocol.Fatal)
    assert fatal.code == "bad_model"
    assert "model.safetensors" in fatal.message
    assert worker.exit_code() == 78
    assert "Traceback" not in worker.stderr


@pytest.mark.parametrize(
    ("config", "code", "reason"),
    [
        ({"model_type": "gpt2"}, "unsupported_model", "`gpt2`"),
        ({}, "unsupported_model", "`null`"),
        ({"model_type": "../bert"}, "unsupported_model", "`../bert`"),
        ([], "bad_model", "not a JSON object"),
    ],
)
def test_configuration_of_another_model_is_fatal(
    start: Callable[..., Child], tmp_path: Path, config: Any, code: str, reason: str
) -> None:
    worker = start(*command(model_directory(tmp_path / "model", config, b"")))
    worker.expect(_protocol.Hello)
    fatal = worker.expect(_protocol.Fatal)
    assert fatal.code == code
    assert reason in fatal.message
    assert worker.exit_code() == 78


def test_missing_directory_is_fatal(start: Callable[..., Child], tmp_path: Path) -> None:
    worker = start(*command(tmp_path / "nothing"))
    worker.expect(_protocol.Hello)
    assert worker.expect(_protocol.Fatal).code == "bad_model"
    wait_until(lambda: worker.process.poll() is not None, "the end of the worker")
    assert worker.exit_code() == 78
