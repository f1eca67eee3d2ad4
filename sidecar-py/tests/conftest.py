"""What several test files need: worker processes on a socket pair, frames, golden vectors, arithmetic."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from native_setup import LOADED, NativeSetup, script

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from precision import golden
from precision.golden import Text
from precision.golden import cosine as cosine  # noqa: PLC0414 - for all tests

from akidb_sidecar import _prepare, _protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from akidb_sidecar._engine import Engine, Pooling

TESTS = Path(__file__).parent
SCRIPTS = TESTS.parent.parent / "scripts"
GOLDEN_FRAMES = TESTS.parent.parent / "protocol" / "vectors"
WAIT_SECONDS = 30.0
"""How long a test waits for what must come; a worker that hangs fails its test after it."""
LARGEST_GROWTH_BYTES = 40_000_000
"""By how much the memory of a process may grow once it has seen its largest batch."""
END_SECONDS = 2.0
"""How soon a worker must be gone after its gateway."""

ON_ANY_SYSTEM = pytest.mark.parametrize(
    "system",
    [
        pytest.param([], id="here"),
        pytest.param(
            [TESTS / "xnu.py"],
            id="as-on-macos",
            marks=pytest.mark.skipif(hasattr(select, "kqueue"), reason="macOS needs no emulation of itself"),
        ),
    ],
)
"""For a process whose command these are the first words of: once as it is, and once with the rules of XNU."""

GoldenText = Text
Kind = TypeVar("Kind", bound=_protocol.Message)
BINARY_FIELDS = ("lengths", "token_ids", "vectors")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that choose what the models take for their device, in the process of the tests."""
    parser.addoption(
        "--cpu",
        action="store_true",
        help="have MLX compute on the CPU where it would take a GPU; without this, a Mac tests its GPU",
    )
    parser.addoption(
        "--gpu-branches",
        action="store_true",
        help="have the models take the branches that they take on a GPU, computed by MLX's CPU; only what "
        "runs in the process of the tests is affected",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Choose the device before any model is imported, which looks once."""
    if config.getoption("--cpu"):
        from akidb_sidecar import _device  # noqa: PLC0415 - brings MLX with its BLAS

        _device.choose("cpu")
    if config.getoption("--gpu-branches"):
        from akidb_sidecar import _blas  # noqa: PLC0415

        _blas.load()
        import mlx.core as mx  # noqa: PLC0415 - after its BLAS

        gpu = mx.Device(mx.gpu)
        mx.default_device = lambda: gpu
        mx.disable_compile()  # on a CPU it would run a C++ compiler; what it fuses is computed one by one


class Child:
    """A Python process that has one end of a socket pair as its standard input; this side holds the other."""

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str | Path],
        environment: Mapping[str, str],
        descriptors: Sequence[int],
    ) -> None:
        self._stdout, self._stderr = folder / "stdout", folder / "stderr"
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(WAIT_SECONDS)
        with theirs, self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                stdin=theirs.fileno(),
                stdout=stdout,
                stderr=stderr,
                env={**os.environ, "PYTHONUNBUFFERED": "", **environment},
                pass_fds=descriptors,
            )

    @property
    def stdout(self) -> str:
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    def send(self, *messages: _protocol.Message) -> None:
        """Send all of them in one write."""
        self.socket.sendall(b"".join(map(_protocol.encode, messages)))

    def receive(self) -> _protocol.Message:
        """Wait for one frame."""
        try:
            return read_frame(self.socket)
        except EOFError:
            pytest.fail(f"end-of-file; exit code {self.exit_code()}\n{self.stderr}")

    def expect(self, kind: type[Kind]) -> Kind:
        """Wait for one frame of this kind, heartbeats aside."""
        message = self.receive()
        while isinstance(message, _protocol.Heartbeat) and kind is not _protocol.Heartbeat:
            message = self.receive()
        assert isinstance(message, kind), f"{message}\n{self.stderr}"
        return message

    def ready(self) -> _protocol.Ready:
        """Wait until the worker has said hello and loaded its model."""
        self.expect(_protocol.Hello)
        return self.expect(_protocol.Ready)

    def embed(self, *texts: Sequence[int], pooling: Pooling = "mean", threads: int = 0) -> array[float]:
        """Have one batch embedded."""
        message = embed(7, *texts, pooling=pooling, threads=threads)
        self.send(message)
        assert self.expect(_protocol.Begun).batch_id == 7
        answer = self.expect(_protocol.Vectors)
        assert (answer.batch_id, answer.count) == (7, len(texts))
        return array("f", bytes(answer.vectors))

    def exit_code(self, within_seconds: float = WAIT_SECONDS) -> int:
        """Wait for the end of the process."""
        try:
            return self.process.wait(within_seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the process lives on after {within_seconds} s\n{self.stderr}")

    def close(self) -> None:
        """Leave nothing behind."""
        self.socket.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """Start processes that do not outlive the test."""
    children: list[Child] = []

    def start_child(
        *arguments: str | Path, environment: Mapping[str, str] | None = None, descriptors: Sequence[int] = ()
    ) -> Child:
        folder = tmp_path / f"child-{len(children)}"
        folder.mkdir()
        children.append(Child(folder, arguments, environment or {}, descriptors))
        return children[-1]

    yield start_child
    for child in children:
        child.close()


def read_frame(gateway: socket.socket) -> _protocol.Message:
    """Read one frame; raise :class:`EOFError` when the other end is gone."""
    message_type, body_bytes = _protocol.decode_header(_read_exactly(gateway, _protocol.HEADER_BYTES))
    return _protocol.decode_body(message_type, _read_exactly(gateway, body_bytes))


def _read_exactly(gateway: socket.socket, count: int) -> bytearray:
    buffer = bytearray(count)
    rest = memoryview(buffer)
    while rest:
        received = gateway.recv_into(rest)
        if not received:
            raise EOFError
        rest = rest[received:]
    return buffer


def embed(
    batch_id: int, *texts: Sequence[int], pooling: Pooling = "mean", threads: int = 0
) -> _protocol.Embed:
    """Build an embed message from token ids."""
    lengths, token_ids = pack(texts)
    return _protocol.Embed(
        batch_id=batch_id, pooling=pooling, threads=threads, lengths=lengths, token_ids=token_ids
    )


def pack(texts: Sequence[Sequence[int]]) -> tuple[bytes, bytes]:
    """Return lengths and token ids as they travel."""
    ids = [token_id for text in texts for token_id in text]
    return struct.pack(f"<{len(texts)}I", *map(len, texts)), struct.pack(f"<{len(ids)}I", *ids)


def rows(numbers: array[float], count: int) -> list[array[float]]:
    """Cut a batch's vectors apart."""
    dimension = len(numbers) // count
    assert dimension * count == len(numbers)
    return [numbers[row * dimension : (row + 1) * dimension] for row in range(count)]


def same_cosine(engine: Engine) -> float:
    """Return the least cosine of vectors that should be one, in the type in which an engine computes."""
    return {"float32": 0.99999, "float16": 0.9999, "bfloat16": 0.99}[engine.info.dtype]


def memory_growth(model: Path, longest: int, most_texts: int, batches: int, **environment: str) -> int:
    """Return by how many bytes the memory of a process grows over the last four fifths of varied batches."""
    arguments = map(str, (TESTS / "memory_child.py", model, longest, most_texts, batches))
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS), **environment},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=100,
    )
    before, after = map(int, done.stdout.split())
    assert before > 30_000_000
    return after - before


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that has no event of its own."""
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, f"never came: {what}"
        time.sleep(0.01)


def golden_frames() -> list[dict[str, Any]]:
    """Return ``type``, ``fields`` and ``frame`` of every golden frame."""
    entries: list[dict[str, Any]] = json.loads((GOLDEN_FRAMES / "index.json").read_text())
    for entry in entries:
        entry["frame"] = (GOLDEN_FRAMES / entry["file"]).read_bytes()
        for field in BINARY_FIELDS:
            if field in entry["fields"]:
                entry["fields"][field] = bytes.fromhex(entry["fields"][field])
    return entries


@pytest.fixture(scope="session")
def golden_texts() -> list[Text]:
    """Return the golden texts of all-minilm-l6-v2 that are not long."""
    texts = golden.read(golden.MINILM).texts
    assert len(texts) >= 32
    assert all(1 < len(text.token_ids) < 40 for text in texts)
    return texts


@pytest.fixture(scope="session")
def cpu_computes() -> None:
    """Skip where a GPU does: what is chosen on a CPU cannot be tested then."""
    from akidb_sidecar import _device  # noqa: PLC0415 - brings MLX, which not every test needs

    if _device.chosen() == "gpu":
        pytest.skip("a GPU computes; `pytest --cpu` tests this")


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """Return the directory of all-minilm-l6-v2, from its PyPI package."""
    return Path(_prepare.prepare("all-minilm-l6-v2").path)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> NativeSetup:
    """Return a cache in which the kernels are, compiled by a compiler that saves time, not instructions."""
    base = tmp_path_factory.mktemp("compiled")
    (base / "temporary").mkdir()
    made = NativeSetup(base / "cache", script(base / "quick-cc", 'exec cc "$@" -O0'))
    assert made.load() == LOADED
    return made


@pytest.fixture
def native(compiled: NativeSetup, tmp_path: Path) -> NativeSetup:
    """Return a copy of that cache."""
    (tmp_path / "temporary").mkdir()
    shutil.copytree(compiled.base, tmp_path / "cache")
    return NativeSetup(tmp_path / "cache", compiled.compiler)


@pytest.fixture
def empty(compiled: NativeSetup, tmp_path: Path) -> NativeSetup:
    """Return a cache folder that is not there yet."""
    (tmp_path / "temporary").mkdir()
    return NativeSetup(tmp_path / "cache", compiled.compiler)
