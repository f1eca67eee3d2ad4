"""A process that loads the kernels, with a cache and a compiler of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 60
"""How long loading may take."""
LOAD = """
import json
from akidb_sidecar import _kernels
try:
    kernels = _kernels.load()
except Exception as error:
    print(json.dumps({"error": str(error)}))
else:
    print(json.dumps({"panel": kernels.panel, "warnings": kernels.warnings}))
"""
PREPARE = "from akidb_sidecar import _kernels; print(_kernels.prepare())"


@dataclass(frozen=True)
class NativeSetup:
    """A cache and a compiler that is quick."""

    base: Path
    compiler: Path

    @property
    def folder(self) -> Path:
        return self.base / "akidb"

    def library(self) -> Path:
        (library,) = self.folder.iterdir()
        return library

    def environment(self, **changes: str | Path) -> dict[str, str]:
        here = {"XDG_CACHE_HOME": self.base, "CC": self.compiler, "TMPDIR": self.base.parent / "temporary"}
        return {**os.environ, **{name: str(value) for name, value in (here | changes).items()}}

    def load(self, *before: str, **changes: str | Path) -> Outcome:
        done = subprocess.run(
            [*before, sys.executable, "-c", LOAD],
            env=self.environment(**changes),
            check=False,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, (done.returncode, done.stderr)
        answer = json.loads(done.stdout)
        assert answer.get("panel", 8) in (8, 16, 32), answer
        return Outcome("panel" in answer, tuple(answer.get("warnings", ())), answer.get("error", ""))

    def temporary_files(self) -> list[Path]:
        return list((self.base.parent / "temporary").iterdir())


@dataclass(frozen=True)
class Outcome:
    """What came of loading the kernels."""

    is_loaded: bool
    warnings: tuple[str, ...] = ()
    error: str = ""


LOADED = Outcome(is_loaded=True)


def script(path: Path, commands: str) -> Path:
    path.write_text(f"#!/bin/sh\n{commands}\n")
    path.chmod(0o755)
    return path
