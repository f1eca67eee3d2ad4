"""The command line, and the check-up for people."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from akidb_sidecar import __version__, _cli

FAST_GFLOPS = 40
"""What one core must reach with a fast BLAS; a quiet machine shows 60 and more, the reference BLAS 2 to 5."""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "akidb_sidecar", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_worker_flags_become_settings() -> None:
    settings = _cli.parse(["worker", "--model-path", "/m", "--max-tokens", "256", "--worker-id", "3"])
    assert settings == _cli.WorkerSettings(model_path=Path("/m"), max_tokens=256, worker_id=3)
    settings = _cli.parse(["worker", "--model-path=/m", "--max-tokens=256", "--cpu-weights", "quantized"])
    assert settings == _cli.WorkerSettings(Path("/m"), 256, 0, cpu_weights="quantized")
    settings = _cli.parse(
        ["worker", "--model-path=/m", "--max-tokens=256", "--device=cpu", "--gpu-dtype=stored"]
    )
    assert settings == _cli.WorkerSettings(Path("/m"), 256, 0, device="cpu", gpu_dtype="stored")


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        ([], _cli.PrepareSettings("m", None, show_progress=True)),
        (["--revision", "v1", "--progress", "off"], _cli.PrepareSettings("m", "v1", show_progress=False)),
        (["--device", "cpu"], _cli.PrepareSettings("m", None, show_progress=True, device="cpu")),
    ],
)
def test_prepare_flags_become_settings(flags: list[str], settings: _cli.PrepareSettings) -> None:
    assert _cli.parse(["prepare", "--model", "m", *flags]) == settings


@pytest.mark.parametrize(("action", "asking"), [("pull", "always"), ("path", "never")])
def test_models_pull_and_path_are_prepare_that_asks_the_hub_always_or_never(
    action: str, asking: Literal["always", "never"]
) -> None:
    settings = _cli.PrepareSettings("m", "v1", show_progress=True, asking=asking, for_workers=False)
    assert _cli.parse(["models", action, "--model", "m", "--revision=v1"]) == settings


def test_models_list_has_no_flags() -> None:
    assert _cli.parse(["models", "list"]) == _cli.ListSettings()


def test_doctor_has_no_flags() -> None:
    assert _cli.parse(["doctor"]) == _cli.DoctorSettings()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "required: command"),
        (["serve"], "invalid choice"),
        (["worker", "--max-tokens", "256"], "required: --model-path"),
        (["worker", "--model-path", "/m"], "required: --max-tokens"),
        (["worker", "--model-path", "/m", "--max-tokens", "many"], "not a positive number"),
        (["worker", "--model-path", "/m", "--max-tokens", "0"], "`0` is not a positive number"),
        (["worker", "--model-path", "/m", "--max-tokens=-4"], "`-4` is not a positive number"),
        (["worker", "--cpu-weights", "int4"], "invalid choice"),
        (["worker", "--device", "tpu"], "invalid choice"),
        (["worker", "--gpu-dtype", "float8"], "invalid choice"),
        (["prepare"], "required: --model"),
        (["prepare", "--model", "m", "--progress", "on"], "invalid choice"),
        (["models"], "required: action"),
        (["models", "path"], "required: --model"),
        (["doctor", "--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_wrong_command_line_is_explained(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        _cli.parse(arguments)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: akidb-sidecar")
    assert reason in captured.err


def test_version_is_printed() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")


@pytest.mark.mlx
def test_doctor_finds_a_fast_blas() -> None:
    best = 0
    for _ in range(3):
        done = run("doctor")
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(r"^blas +\S", done.stdout, re.MULTILINE)
        assert "warning" not in done.stdout
        measured = re.search(r"^float32 matmul, 1 thread +(\d+) GFLOP/s", done.stdout, re.MULTILINE)
        assert measured, done.stdout
        best = max(best, int(measured[1]))
        if best >= FAST_GFLOPS:
            break
    assert best >= FAST_GFLOPS
