"""The servers that are compared: how each is started, asked, and what its answer looks like."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench import environments
from bench.processes import PYTHON, REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GATEWAY = REPOSITORY / "target" / "release" / "akidb-gateway"
LOAD = REPOSITORY / "target" / "release" / "examples" / "load"
ECHO_WORKER = REPOSITORY / "scripts" / "bench" / "echo.py"
NATIVE_PATH = "/api/v1/embed"


def load_command(address: str, path: str, bodies: Path, **flags: float) -> list[str]:
    """Return the command of a closed loop; ``flags`` are those of ``load run``."""
    words = [str(LOAD), "run", "--address", address, "--path", path, "--bodies", str(bodies)]
    for name, value in flags.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words


@dataclass(frozen=True)
class Server:
    """One server. ``environment`` names the peers' environment that it needs."""

    name: str
    about: str
    command: Callable[[int], list[str]]
    path: str
    computes: bool = True
    environment: str | None = None
    variables: dict[str, str] = field(default_factory=dict)
    dialect: str = "texts"

    def body(self, texts: list[str]) -> str:
        """Return the JSON of a request."""
        fields = (
            {"input": texts, "model": environments.MODEL} if self.dialect == "openai" else {"texts": texts}
        )
        return json.dumps(fields)

    def vector(self, answer: Any) -> list[float] | None:  # noqa: ANN401 - JSON
        """Return the first vector of an answer, where there are any."""
        if not self.computes:
            return None
        vector: list[float] = (
            answer["data"][0]["embedding"] if self.dialect == "openai" else answer["embeddings"][0]
        )
        return vector


def all_servers(model: Path, onnx_model: Path) -> list[Server]:
    """Return every server, in the order in which a round visits them."""
    return [
        _gateway("akidb", "two workers", workers=2),
        _gateway("akidb-1-worker", "one worker", workers=1),
        _mosec("mosec", "sentence-transformers, dynamic batching, 1 worker with 2 threads", "model", model),
        _mosec(
            "mosec-2-workers",
            "sentence-transformers, dynamic batching, 2 workers with 1 thread each",
            "model",
            model,
            workers=2,
        ),
        _infinity("infinity-torch", "torch engine, float32, without its warm-up", "torch", model),
        _infinity(
            "infinity-onnx", "optimum engine (ONNX Runtime), without its warm-up", "optimum", onnx_model
        ),
        _gateway("echo-akidb", "gateway, two workers that compute nothing", workers=2, computes=False),
        _mosec("echo-mosec-json", "stock JSON worker", "json", model, workers=2),
        _mosec("echo-mosec-bytes", "worker that returns ready-made bytes", "bytes", model, workers=2),
        Server(
            name="hello",
            about="bare hyper server, five bytes",
            command=lambda port: [str(LOAD), "hello", "--address", f"127.0.0.1:{port}"],
            path="/",
            computes=False,
        ),
    ]


NOT_BY_DEFAULT = ("akidb-1-worker", "mosec-2-workers")


def _gateway(name: str, about: str, *, workers: int, computes: bool = True) -> Server:
    python = [] if computes else ["--python", str(ECHO_WORKER)]

    def command(port: int) -> list[str]:
        flags = ["--model", environments.MODEL, "--workers", str(workers), "--listen", f"127.0.0.1:{port}"]
        return [str(GATEWAY), *flags, *python]

    return Server(name, about, command, NATIVE_PATH, computes)


def _mosec(name: str, about: str, kind: str, model: Path, *, workers: int = 1) -> Server:
    python = environments.python_of("peers")
    variables = {
        "BENCH_MOSEC": kind,
        "BENCH_MODEL": str(model),
        "BENCH_MOSEC_WORKERS": str(workers),
        "BENCH_MOSEC_THREADS": str(max(1, 2 // workers)),
    }

    def command(port: int) -> list[str]:
        flags = ["--address", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
        return [str(python), "-m", "bench.mosec_server", *flags]

    return Server(name, about, command, "/inference", kind == "model", "peers", variables)


def _infinity(name: str, about: str, engine: str, model: Path) -> Server:
    python = environments.python_of("infinity")

    def command(port: int) -> list[str]:
        flags = {
            "model-id": str(model),
            "served-model-name": environments.MODEL,
            "engine": engine,
            "device": "cpu",
            "dtype": "float32",
            "pooling-method": "mean",  # its own choice for ONNX models is the first token: wrong here
            "host": "127.0.0.1",
            "port": str(port),
            "log-level": "error",
        }
        words = [word for flag, value in flags.items() for word in (f"--{flag}", value)]
        program = str(python.with_name("infinity_emb"))
        return [program, "v2", *words, "--no-bettertransformer", "--no-model-warmup"]

    return Server(name, about, command, "/embeddings", environment="infinity", dialect="openai")


def engine_command(model: Path, corpus: Path) -> list[str]:
    """Return the command of our own engine in a child process."""
    return [str(PYTHON), "-m", "bench.engine", str(model), str(corpus)]


def peer_command(library: str, model: Path, corpus: Path, threads: int) -> list[str]:
    """Return the command of a peers' library in a child process."""
    python = environments.python_of("peers")
    return [str(python), "-m", "bench.peer", library, str(model), str(corpus), str(threads)]
