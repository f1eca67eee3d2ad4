"""The command line: flags to frozen settings."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from akidb_sidecar import __version__
from akidb_sidecar._connection import HEARTBEAT_MS

if TYPE_CHECKING:
    from collections.abc import Sequence


CpuWeights = Literal["float32", "quantized"]
"""How 4-bit and 8-bit weights are held on a CPU."""


@dataclass(frozen=True)
class WorkerSettings:
    """``worker``: serve a gateway on standard input."""

    model_path: Path
    max_tokens: int
    worker_id: int
    heartbeat_ms: int = HEARTBEAT_MS
    cpu_weights: CpuWeights = "float32"


@dataclass(frozen=True)
class PrepareSettings:
    """``prepare``: make a model lie in a local directory."""

    model: str
    revision: str | None
    show_progress: bool
    ends_with_input: bool = False


@dataclass(frozen=True)
class DoctorSettings:
    """``doctor``: a check-up for people."""


Settings = WorkerSettings | PrepareSettings | DoctorSettings


def parse(arguments: Sequence[str]) -> Settings:
    """Read the command line; argparse ends the process when it is wrong."""
    flags = _parser().parse_args(arguments)
    if flags.command == "worker":
        return WorkerSettings(
            flags.model_path, flags.max_tokens, flags.worker_id, flags.heartbeat_ms, flags.cpu_weights
        )
    if flags.command == "prepare":
        return PrepareSettings(flags.model, flags.revision, flags.progress == "auto", flags.end_with_input)
    return DoctorSettings()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="akidb-sidecar", description="The Python half of akidb-gateway.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)

    worker = commands.add_parser("worker", help="serve a gateway on standard input; the gateway runs this")
    worker.add_argument("--model-path", type=Path, required=True, help="directory in Hugging Face layout")
    worker.add_argument("--max-tokens", type=_positive, required=True, help="longest text, in tokens")
    worker.add_argument("--worker-id", type=int, default=0, help="number of this worker, for logs")
    worker.add_argument(
        "--heartbeat-ms", type=_positive, default=HEARTBEAT_MS, help="time between two signs of life"
    )
    worker.add_argument(
        "--cpu-weights",
        choices=get_args(CpuWeights),
        default="float32",
        help="how 4-bit and 8-bit weights are held on a CPU: float32 computes many times faster "
        "and needs 4 bytes a weight; quantized keeps them as they are",
    )

    prepare = commands.add_parser("prepare", help="find or download a model and print where it is, as JSON")
    prepare.add_argument("--model", required=True, help="name, hub repository (owner/name), or directory")
    prepare.add_argument("--end-with-input", action="store_true", help="stop when standard input is closed")
    prepare.add_argument("--revision", help="branch, tag or commit on the hub")
    prepare.add_argument(
        "--progress", choices=("auto", "off"), default="auto", help="progress bars on stderr"
    )

    commands.add_parser("doctor", help="print versions, device, BLAS, and how fast this machine multiplies")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"`{text}` is not a positive number")
    return int(text)
