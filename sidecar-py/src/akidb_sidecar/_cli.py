"""The command line: flags to frozen settings."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from akidb_sidecar import __version__
from akidb_sidecar._connection import HEARTBEAT_MS
from akidb_sidecar._engine import CpuWeights, DeviceChoice, GpuDtype

if TYPE_CHECKING:
    from collections.abc import Sequence

    from akidb_sidecar._hub import Asking


@dataclass(frozen=True)
class WorkerSettings:
    """``worker``: serve a gateway on standard input."""

    model_path: Path
    max_tokens: int
    worker_id: int
    heartbeat_ms: int = HEARTBEAT_MS
    cpu_weights: CpuWeights = "float32"
    device: DeviceChoice = "auto"
    gpu_dtype: GpuDtype = "float16"


@dataclass(frozen=True)
class PrepareSettings:
    """``prepare``, ``models pull``, ``models path``: put a model into a local directory, and print it."""

    model: str
    revision: str | None
    show_progress: bool
    ends_with_input: bool = False
    asking: Asking = "when_missing"
    for_workers: bool = True
    """Whether to make what workers need besides the model, too."""
    device: DeviceChoice = "auto"
    """What the workers will compute with."""


@dataclass(frozen=True)
class ListSettings:
    """``models list``: say which models there are."""


@dataclass(frozen=True)
class DoctorSettings:
    """``doctor``: a check-up for people."""


Settings = WorkerSettings | PrepareSettings | ListSettings | DoctorSettings
ASKING: dict[str, Asking] = {"pull": "always", "path": "never"}


def parse(arguments: Sequence[str]) -> Settings:
    """Read the command line; argparse ends the process when it is wrong."""
    flags = _parser().parse_args(arguments)
    if flags.command == "worker":
        return WorkerSettings(
            flags.model_path,
            flags.max_tokens,
            flags.worker_id,
            flags.heartbeat_ms,
            flags.cpu_weights,
            flags.device,
            flags.gpu_dtype,
        )
    if flags.command == "prepare":
        return PrepareSettings(
            flags.model,
            flags.revision,
            flags.progress == "auto",
            flags.end_with_input,
            device=flags.device,
        )
    if flags.command == "models":
        if flags.action == "list":
            return ListSettings()
        return PrepareSettings(
            flags.model,
            flags.revision,
            flags.progress == "auto",
            flags.end_with_input,
            ASKING[flags.action],
            for_workers=False,
        )
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
        "--heartbeat-ms", type=_positive, default=HEARTBEAT_MS, help="time between two heartbeats"
    )
    worker.add_argument(
        "--cpu-weights",
        choices=get_args(CpuWeights),
        default="float32",
        help="how 4-bit and 8-bit weights are held on a CPU: float32 needs 4 bytes "
        "a weight; quantized keeps them as they are",
    )
    _add_device(worker)
    worker.add_argument(
        "--gpu-dtype",
        choices=get_args(GpuDtype),
        default="float16",
        help="in which type a GPU computes the products; stored is the type of the weights",
    )

    prepare = commands.add_parser("prepare", help="find or download a model and print where it is, as JSON")
    _add_model(prepare)
    _add_device(prepare)

    models = commands.add_parser("models", help="list, download and find models; every answer is JSON")
    actions = models.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="print the known models, and those in the hub's local cache")
    pull = actions.add_parser("pull", help="download a model, or what is newer of it on the hub")
    _add_model(pull)
    path = actions.add_parser("path", help="print where a model is, without asking the hub")
    _add_model(path)

    commands.add_parser("doctor", help="print versions, device, BLAS, and how fast this machine multiplies")
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="name, hub repository (owner/name), or directory")
    parser.add_argument("--end-with-input", action="store_true", help="stop when standard input is closed")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument(
        "--progress",
        choices=("auto", "off"),
        default="auto",
        help="progress bars on stderr, where it is a terminal",
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        choices=get_args(DeviceChoice),
        default="auto",
        help="what computes; auto is a GPU where there is one that works, else the CPU",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"`{text}` is not a positive number")
    return int(text)
