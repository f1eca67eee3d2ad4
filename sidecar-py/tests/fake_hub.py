#!/usr/bin/env python3
"""A Hugging Face hub on a local port: as much of its HTTP API as a download needs, and faults on command.

Weights are what the hub calls large files: their answer leads to another host, ``localhost``, as to a CDN.
As a program, ``fake_hub.py FOLDER [STALL_AFTER]`` serves the files of a folder as ``owner/name`` until its
standard input ends. It prints its address, and takes one command a line: ``move`` makes another commit the
``main``, ``flow`` ends the stall, ``requests`` does nothing. Each is answered by all requests so far.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from types import TracebackType

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NEXT_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
PIECE_BYTES = 1 << 16


@dataclass
class Repository:
    """Files by commit and name, and which commit a branch or tag is."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})


@dataclass(frozen=True)
class Request:
    """What a client asked."""

    method: str
    host: str
    path: str
    range: str | None
    authorization: str | None


CONFIG = json.dumps(
    {
        "model_type": "bert",
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 64,
        "vocab_size": 40,
        "max_position_embeddings": 32,
        "type_vocab_size": 2,
    }
).encode()
"""A ``config.json`` that can be obeyed."""


@dataclass(frozen=True)
class Answer:
    """Status, headers and body; ``name`` is that of a file."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    name: str = ""


class FakeHub:
    """Serves while its block runs; with ``silent`` it closes every connection unanswered."""

    def __init__(self, repository: str = "owner/name", *, silent: bool = False) -> None:
        self.files = {
            "config.json": CONFIG,
            "tokenizer.json": b'{"version": "1.0"}',
            "model.safetensors": b"weights" * 1000,
            "pytorch_model.bin": b"a pickle",
        }
        self.repositories = {repository: Repository({COMMIT: self.files})}
        self.silent = silent
        self.asked: list[Request] = []
        self.stall_after: int | None = None
        """After this many bytes of a large file, nothing more comes until ``flow`` is set."""
        self.flow = threading.Event()
        self.stalled = threading.Event()
        self.instead: dict[str, bytes] = {}
        """What is sent in place of a file."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._port = self._server.server_port
        self.address = f"http://127.0.0.1:{self._port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> FakeHub:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flow.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def requests(self) -> list[str]:
        """Return the paths of all requests."""
        return [request.path for request in self.asked]

    def downloads(self, name: str) -> list[Request]:
        """Return the requests for the content of a file of ``owner/name``, wherever it lies."""
        return [
            request
            for request in self.asked
            if request.method == "GET"
            and request.path.startswith(("/cdn/", "/owner/name/resolve/"))
            and request.path.endswith(f"/{name}")
        ]

    def move(self, files: dict[str, bytes], commit: str = NEXT_COMMIT) -> None:
        """Make another commit the ``main`` of ``owner/name``."""
        repository = self.repositories["owner/name"]
        repository.commits[commit] = files
        repository.refs["main"] = commit

    def answer(self, path: str) -> Answer:
        """Return what a path leads to."""
        parts = path.strip("/").split("/")
        if parts[0] == "cdn":
            return self._large(parts[1], "/".join(parts[2:]))
        is_api = parts[:2] == ["api", "models"]
        parts = parts[2:] if is_api else parts
        repository = self.repositories.get("/".join(parts[:2]))
        if repository is None:
            return Answer(404, {"X-Error-Code": "RepoNotFound"})
        action = parts[2] if len(parts) > 2 else "revision"
        revision = parts[3].replace("%2F", "/") if len(parts) > 3 else "main"
        commit = repository.refs.get(revision, revision)
        files = repository.commits.get(commit)
        if files is None:
            return Answer(404, {"X-Error-Code": "RevisionNotFound"})
        if action == "revision":
            siblings = [{"rfilename": name} for name in files]
            return _json({"id": "/".join(parts[:2]), "sha": commit, "siblings": siblings})
        if action == "tree":
            return _json([_entry(name, data) for name, data in files.items()])
        return self._file(files, "/".join(parts[4:]), commit)

    def _file(self, files: dict[str, bytes], name: str, commit: str) -> Answer:
        data = files.get(name)
        headers = {"X-Repo-Commit": commit}
        if data is None:
            return Answer(404, {**headers, "X-Error-Code": "EntryNotFound"})
        if not name.endswith(".safetensors"):
            return Answer(
                200, {**headers, "ETag": f'"{_git_sha1(data)}"'}, self.instead.get(name, data), name
            )
        sha256 = _sha256(data)
        linked = {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{sha256}"'}
        return Answer(
            302, {**headers, **linked, "Location": f"http://localhost:{self._port}/cdn/{sha256}/{name}"}
        )

    def _large(self, sha256: str, name: str) -> Answer:
        for repository in self.repositories.values():
            for files in repository.commits.values():
                if name in files and _sha256(files[name]) == sha256:
                    return Answer(200, {}, self.instead.get(name, files[name]), name)
        return Answer(404, {})

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = urlsplit(self.path).path
                get = self.headers.get
                hub.asked.append(
                    Request(self.command, get("Host", ""), path, get("Range"), get("Authorization"))
                )
                if hub.silent:
                    return
                answer = hub.answer(path)
                status, body, start = answer.status, answer.body, 0
                headers = dict(answer.headers)
                wanted = get("Range")
                if status == 200 and wanted is not None and answer.name:
                    start = int(wanted.removeprefix("bytes=").rstrip("-"))
                    status = 206
                    headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body) - start)}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self._send(body, start)

            def _send(self, body: bytes, start: int) -> None:
                stall = hub.stall_after if len(body) > 1 << 20 else None
                try:
                    for place in range(start, len(body), PIECE_BYTES):
                        if stall is not None and place >= stall and not hub.flow.is_set():
                            hub.stalled.set()
                            hub.flow.wait()
                        self.wfile.write(body[place : place + PIECE_BYTES])
                except ConnectionError:
                    pass  # the client was killed

            def do_HEAD(self) -> None:
                self.do_GET()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
                pass

        return Handler


def _entry(name: str, data: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": name, "size": len(data), "oid": _git_sha1(data)}
    if name.endswith(".safetensors"):
        entry["lfs"] = {"oid": _sha256(data), "size": len(data), "pointerSize": 134}
    return entry


def _json(value: Any) -> Answer:
    return Answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def main() -> None:
    folder = Path(sys.argv[1])
    with FakeHub() as hub:
        hub.files.clear()
        for file in folder.rglob("*"):
            if file.is_file():
                hub.files[str(file.relative_to(folder))] = file.read_bytes()
        hub.stall_after = int(sys.argv[2]) if len(sys.argv) > 2 else None
        print(hub.address, flush=True)  # noqa: T201
        for line in sys.stdin:
            if line.strip() == "move":
                weights = hub.files["model.safetensors"]
                hub.move({**hub.files, "model.safetensors": bytes(reversed(weights))})
            elif line.strip() == "flow":
                hub.flow.set()
            # Every command is answered, so that its sender can wait for it.
            print(json.dumps([asdict(request) for request in hub.asked]), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
