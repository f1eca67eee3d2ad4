"""What the commands of a page are run in: a home folder of its own, stand-ins for programs, and a gateway."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from bench.processes import REPOSITORY, Child, environment_for_children, free_port
from bench.systems import GATEWAY
from fake_hub import FakeHub

if TYPE_CHECKING:
    from types import TracebackType

    from guides.page import Command

WORKPLACE = REPOSITORY / "target" / "guides"
ADDRESS = "localhost:8080"
"""Of the gateway in all guides; here it listens on a free port."""
PROMPTS_MODEL = REPOSITORY / "sidecar-py" / "tests" / "golden" / "tiny-qwen3"
HUB_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
"""What a stand-in for the hub has."""
KEPT = {"CARGO_HOME": ".cargo", "RUSTUP_HOME": ".rustup", "XDG_CACHE_HOME": ".cache"}
DEFAULT = ["--model", "all-minilm-l6-v2", "--workers", "1"]
LIMIT_SECONDS = 600
SHORT_FORMS = {
    "BENCH_ARGS": "--quick --only engine",
    "CHAOS_SECONDS": "5",
    "FAILOVER_ARGS": "--seconds 12",
    "OVERLOAD_ARGS": "--only default --seconds 3",
    "TUNE_ARGS": "--quick --only permits",
    "VALIDATE_ARGS": "--quick",
}
"""Targets of make that take minutes read these; a command that names options itself gets those."""
STAND_INS = {
    "sudo": 'exec "$@"',
    "systemctl": "case \"$*\" in *' show '*) echo LoadState=loaded; echo ActiveState=active;; esac",
    "journalctl": "exit 0",
    "loginctl": "exit 0",
}
"""There may be no systemd here, and no service is to be left; other tests check what they are told."""
STATUS = "%{stderr}status %{http_code}"
"""What curl writes at its end."""
_SERVES = re.compile(r"target/release/akidb-gateway( --(?!help|version)|$)|make run( |$)")


class Surroundings:
    """Runs commands. Leaving the ``with`` block ends whatever they started."""

    def __enter__(self) -> Self:
        self._gateways: dict[int, Child] = {}
        self._port, self._prompts_port = free_port(), free_port()
        with contextlib.ExitStack() as ends:
            home = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="akidb-guides-")))
            hub = ends.enter_context(FakeHub(HUB_MODEL))
            self._environment = _environment(home, hub.address) | {"AKIDB_LISTEN": f"127.0.0.1:{self._port}"}
            self._ends = ends.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for port in list(self._gateways):
            self._stop(port)
        self._ends.close()

    def run(self, command: Command) -> str:
        """Run one command; say what is wrong, or nothing."""
        if _SERVES.match(command.text):
            self._stop(self._port)
            self._serve(self._port, ["sh", "-c", f"exec {command.text}"])
            return ""
        port = self._prompts_port if command.needs_prompts else self._port
        if ADDRESS in command.text and port not in self._gateways:
            model = ["--model", str(PROMPTS_MODEL), "--workers", "1"] if command.needs_prompts else DEFAULT
            self._serve(port, [str(GATEWAY), *model])
        done = subprocess.run(  # noqa: S603 - commands of our own guides
            ["bash", "-o", "pipefail", "-c", command.text.replace(ADDRESS, f"localhost:{port}")],  # noqa: S607 - bash of the PATH
            cwd=REPOSITORY,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
        return _wrong(command, done)

    def _serve(self, port: int, words: list[str]) -> None:
        environment = self._environment | {"AKIDB_LISTEN": f"127.0.0.1:{port}"}
        child = Child(f"gateway-{port}", words, environment, workplace=WORKPLACE)
        self._gateways[port] = child.__enter__()
        child.wait_for_answer(f"http://127.0.0.1:{port}/readyz", body=None)

    def _stop(self, port: int) -> None:
        if port in self._gateways:
            self._gateways.pop(port).__exit__(None, None, None)


def _environment(home: Path, hub: str) -> dict[str, str]:
    """Fill a home folder, and return what a command gets: nothing of this machine but its toolchain."""
    (home / ".curlrc").write_text(f'write-out = "{STATUS}"\n')
    programs = home / "stand-ins"
    programs.mkdir()
    for name, body in STAND_INS.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    environment = environment_for_children()
    # A gateway finds its Python as a person's does.
    del environment["PYTHONPATH"]
    # The toolchain, and what was compiled for this machine once.
    kept = {name: os.environ.get(name, str(Path.home() / folder)) for name, folder in KEPT.items()}
    path = f"{programs}:{environment['PATH']}"
    mine = {"HOME": str(home), "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "PATH": path}
    return environment | SHORT_FORMS | kept | mine


def _wrong(command: Command, done: subprocess.CompletedProcess[str]) -> str:
    said = (done.stderr.strip() or done.stdout.strip())[-600:]
    if done.returncode != command.exit_code:
        return f"exit code {done.returncode}: {said}"
    statuses = [int(status) for status in re.findall(r"status (\d{3})", done.stderr)]
    if command.words[0] == "curl" and not statuses:
        return f"curl says no status: {said}"
    status, code = command.status or (200, "")
    if any(each != status for each in statuses):
        return f"status {statuses}, not {status}: {done.stdout[-600:]}"
    if code and f'"{code}"' not in done.stdout:
        return f"the code is not {code}: {done.stdout[-600:]}"
    return ""
