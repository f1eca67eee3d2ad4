"""The peers' throw-away Python environments, and the weights in the forms that they take."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from bench.processes import PYTHON, REPOSITORY, WORKPLACE, ChildError, environment_for_children

if TYPE_CHECKING:
    from bench.progress import Progress

UV = REPOSITORY / ".tools" / "bin" / "uv"
MODEL = "all-minilm-l6-v2"
INSTALL_LIMIT_SECONDS = 1800
COMMAND_LIMIT_SECONDS = 300


def python_of(environment: str) -> Path:
    """Return the interpreter of a peers' environment."""
    return WORKPLACE / "environments" / environment / "bin" / "python"


def make(environment: str, progress: Progress) -> None:
    """Install ``requirements-<environment>.txt`` unless that was done before."""
    requirements = Path(__file__).with_name(f"requirements-{environment}.txt")
    folder = WORKPLACE / "environments" / environment
    stamp, state = folder / "installed", hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == state:
        return
    progress.say(f"making the environment `{environment}`: several GB, because torch brings CUDA along; once")
    uv = [str(UV), "--quiet"]
    run([*uv, "venv", "--clear", "--python", str(PYTHON), str(folder)], f"environment-{environment}")
    install = [*uv, "pip", "sync", "--python", str(python_of(environment)), str(requirements)]
    run(install, f"environment-{environment}", INSTALL_LIMIT_SECONDS)
    stamp.write_text(state)


def model_path() -> Path:
    """Return the directory of the weights that the workers use."""
    output = run([str(PYTHON), "-m", "akidb_sidecar", "prepare", "--model", MODEL], "prepare")
    return Path(json.loads(output.splitlines()[-1])["path"])


def models_for_peers(progress: Progress) -> tuple[Path, Path]:
    """Return directories with the same weights: for everybody, and for infinity's ONNX engine.

    infinity takes a local ONNX file only when its name says that it is optimised, and only when it is alone.
    (ONNX Runtime optimises it when it is loaded. What infinity itself would make of it, a file fused
    beforehand, was 13 % slower here.)
    """
    source, plain, alone = model_path(), WORKPLACE / "models" / MODEL, WORKPLACE / "models" / f"{MODEL}-onnx"
    exported = plain / "onnx" / "model.onnx"
    if not exported.is_file():
        progress.say("writing the weights as ONNX; once")
        for folder in (plain, alone):
            shutil.copytree(source, folder, dirs_exist_ok=True)
            (folder / "onnx").mkdir(exist_ok=True)
        unfinished = exported.with_suffix(".unfinished")
        run([str(python_of("peers")), "-m", "bench.export_onnx", str(source), str(unfinished)], "export")
        shutil.copy(unfinished, alone / "onnx" / "model_optimized.onnx")
        shutil.copy(source / "config.json", alone / "onnx" / "config.json")
        unfinished.rename(exported)
    return plain, alone


def run(command: list[str], name: str, limit_seconds: float = COMMAND_LIMIT_SECONDS) -> str:
    """Run a command to its end; return what it wrote."""
    try:
        done = subprocess.run(  # noqa: S603 - commands of our own
            command,
            env=environment_for_children(),
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_seconds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ChildError(f"{name}: {error}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
        raise ChildError(f"{name}: code {done.returncode}: {last[:300]}")
    return done.stdout
