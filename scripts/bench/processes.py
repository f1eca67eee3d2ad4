"""Child processes: started in groups of their own, waited for with a limit, always ended; their memory."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

REPOSITORY = Path(__file__).resolve().parents[2]
WORKPLACE = REPOSITORY / "target" / "bench"
PYTHON = REPOSITORY / "sidecar-py" / ".venv" / "bin" / "python"
"""The workers' environment."""

PATIENCE_SECONDS = 120.0
END_PATIENCE_SECONDS = 10.0


class ChildError(Exception):
    """A child process did not do what it was started for; the message says why, in one line."""


class Child:
    """A process in a group of its own. Leaving the ``with`` block ends the group."""

    def __init__(
        self,
        name: str,
        command: list[str],
        environment: dict[str, str],
        *,
        talks: bool = False,
        workplace: Path = WORKPLACE,
    ) -> None:
        self.name = name
        self._command = command
        self._log_path = workplace / "logs" / f"{name}.log"
        self._environment = environment_for_children() | environment
        self._talks = talks
        self.started = 0.0

    def __enter__(self) -> Child:
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        self._log = self._log_path.open("w")
        self.started = time.monotonic()
        self._process = subprocess.Popen(  # noqa: S603 - commands of our own
            self._command,
            stdin=subprocess.PIPE if self._talks else subprocess.DEVNULL,
            stdout=subprocess.PIPE if self._talks else self._log,
            stderr=self._log,
            cwd=REPOSITORY,
            env=self._environment,
            text=True,
            start_new_session=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._signal(signal.SIGTERM)
            self._process.wait(END_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # Whatever is left of the group: processes that the first one started and did not end.
            self._signal(signal.SIGKILL)
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout, self._log):
                if pipe is not None:
                    pipe.close()

    @property
    def pid(self) -> int:
        """The first process of the tree."""
        return self._process.pid

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Send a line of JSON and wait for one; see :mod:`bench.child`."""
        self.send(question)
        return self.receive()

    def send(self, question: dict[str, Any]) -> None:
        """Send a line of JSON."""
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self.failure("it ended") from None

    def receive(self, patience_seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """Wait for a line of JSON."""
        assert self._process.stdout is not None  # noqa: S101 - for the type checker
        previous = signal.signal(signal.SIGALRM, _raise_timeout)
        signal.alarm(int(patience_seconds))
        try:
            line = self._process.stdout.readline()
        except TimeoutError:
            raise self.failure(f"no answer after {patience_seconds:.0f} s") from None
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)
        if not line:
            raise self.failure("it ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def wait_for_answer(self, url: str, body: str | None) -> tuple[Any, float]:
        """Post, or get, until there is an answer; return it and the seconds since the process was started."""
        deadline = self.started + PATIENCE_SECONDS
        while True:
            try:
                return fetch(url, body), time.monotonic() - self.started
            except (OSError, ValueError) as error:
                if self._process.poll() is not None:
                    raise self.failure(f"it ended with code {self._process.returncode}") from error
                if time.monotonic() > deadline:
                    raise self.failure(f"not ready after {PATIENCE_SECONDS:.0f} s: {error}") from error
                time.sleep(0.01)

    def failure(self, what: str) -> ChildError:
        """Return an error that quotes the last line of the log."""
        lines = self._log_path.read_text(errors="replace").strip().splitlines()
        said = next(
            (line.strip() for line in reversed(lines) if "Error" in line), lines[-1].strip() if lines else ""
        )
        return ChildError(f"{self.name}: {what}" + (f": {said[:300]}" if said else ""))

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def environment_for_children() -> dict[str, str]:
    """Return what every child gets: this checkout's Python code, and no way to a hub or to telemetry."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AKIDB_")}
    paths = (REPOSITORY / "scripts", REPOSITORY / "sidecar-py" / "src")
    return inherited | {
        "PATH": f"{PYTHON.parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": os.pathsep.join(str(path) for path in paths),
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "INFINITY_ANONYMOUS_USAGE_STATS": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_SYSTEM_CERTS": "true",
    }


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def fetch(url: str, body: str | None = None, timeout_seconds: float = 60.0) -> Any:  # noqa: ANN401 - JSON
    """Get a page, or post JSON; return the answer's JSON, or its text where it is none."""
    data = None if body is None else body.encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})  # noqa: S310 - loopback
    with urllib.request.urlopen(request, timeout=timeout_seconds) as answer:  # noqa: S310 - loopback
        text: bytes = answer.read()
    try:
        return json.loads(text)
    except ValueError:
        return text.decode(errors="replace")


def tree(pid: int) -> list[int]:
    """Return the process and all that descend from it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return [pid]


def memory_bytes(pid: int) -> int:
    """Return what the process has in memory: of what n processes share, 1/n.

    Only Linux can tell that; elsewhere it is what the process shares with nobody.
    """
    with contextlib.suppress(psutil.Error):
        memory = psutil.Process(pid).memory_full_info()
        return int(getattr(memory, "pss", memory.uss))
    return 0


def peak_bytes() -> int:
    """Return the most that this process ever had in memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _raise_timeout(_signal: int, _frame: object) -> None:
    raise TimeoutError


def run_command(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a command to its exit code; what a child did wrong is one line, not a traceback."""
    try:
        sys.exit(main(sys.argv[1:]))
    except ChildError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
